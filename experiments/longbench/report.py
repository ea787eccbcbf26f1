"""Tables of the rows by task and by category: scores, their difference from raw KV with intervals, and times and bytes of the transfer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

RESAMPLES = 2000
ALL = "all"


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """For each method: a row for each task, each split (v2's difficulty and length), each category, and one for all.

    The figure of a category is the mean over its tasks, as published, so that a task with more samples does not weigh more.

    score, raw_score: in percent. delta: their mean difference, with its 95 % interval over samples (bootstrap, each task resampled by
    itself). dnll: the same for the negative log-likelihood, in nats per token, over samples whose reference has a scored token. of_raw:
    wire bytes / raw bytes. first_s: seconds to the decode side's first token. colocated_speedup, raw_speedup: first_s of the colocated and
    of the raw run / ours; whole_colocated_speedup: the same for whole answers, all at the length of raw's.
    """
    return pd.concat([_of_method(str(method), group) for method, group in rows.groupby("method", sort=False)], ignore_index=True)


def _of_method(method: str, rows: pd.DataFrame) -> pd.DataFrame:
    good = rows[rows.outcome == "completed"]
    groups = [("task", name, [group], rows[rows.task == name]) for name, group in good.groupby("task", sort=False)]
    groups += [("split", name, [group], group) for name, group in _splits(good)]
    for name, group in good.groupby("category", sort=False):
        groups.append(("category", str(name), [part for _, part in group.groupby("task", sort=False)], rows[rows.category == name]))
    groups.append((ALL, ALL, [part for _, part in good.groupby("task", sort=False)], rows))
    return pd.DataFrame([{"method": method, **_line(kind, str(name), parts, asked)} for kind, name, parts, asked in groups if parts])


def _line(kind: str, name: str, parts: list[pd.DataFrame], asked: pd.DataFrame) -> dict[str, object]:
    def mean(column: str) -> float:
        return float(np.mean([part[column].mean() for part in parts]))

    delta, low, high = interval([(part.score - part.raw_score).to_numpy() * 100 for part in parts])
    rises = [rise for part in parts if len(rise := (part.nll - part.raw_nll).dropna().to_numpy())]
    dnll, nll_low, nll_high = interval(rises) if rises else (np.nan,) * 3
    every = pd.concat(parts)
    ours = every.first_s
    # As if all answers had the length of raw's, because a longer answer is not a slower transfer.
    whole = every.first_s + every.decode_s * (every.raw_answer_tokens - 2).clip(lower=0) / (every.answer_tokens - 1).clip(lower=1)
    return {
        "kind": kind, "name": name, "samples": len(every), "failed": int((asked.outcome != "completed").sum()),
        "truncated": int((every.prompt_tokens < every.whole_tokens).sum()), "prompt_tokens": mean("prompt_tokens"),
        "raw_score": 100 * mean("raw_score"), "score": 100 * mean("score"), "delta": delta, "delta_low": low, "delta_high": high,
        "dnll": dnll, "dnll_low": nll_low, "dnll_high": nll_high, "scored": sum(map(len, rises)), "agreement": mean("agreement"),
        "diverged": float((every.agreement < 1).mean()), "lossless": bool(every.lossless.all()),
        "of_raw": float(every.wire_bytes.sum() / every.raw_bytes.sum()), "distortion": mean("distortion"),
        **{column: float(every[column].mean()) for column in ("prefill_s", "encode_s", "wire_s", "expand_s", "decode_s", "first_s")},
        "raw_wire_s": float(every.raw_wire_s.mean()), "raw_speedup": float(every.raw_first_s.mean() / ours.mean()),
        "colocated_speedup": float(every.colocated_first_s.mean() / ours.mean()),
        "whole_colocated_speedup": float((every.prefill_s + every.colocated_decode_s).mean() / whole.mean()),
    }  # fmt: skip


def interval(parts: list[np.ndarray], seed: int = 0) -> tuple[float, float, float]:
    """(mean of the parts' means, low, high): its 95 % interval is by bootstrap, each part resampled by itself."""
    rng = np.random.default_rng(seed)
    means = np.mean([part[rng.integers(0, len(part), (RESAMPLES, len(part)))].mean(1) for part in parts], 0)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(np.mean([part.mean() for part in parts])), float(low), float(high)


def _splits(good: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    names = dict.fromkeys(name for splits in good.splits for name in splits.split(",") if name)
    for name in names:
        yield f"v2: {name}", good[good.splits.str.split(",").map(lambda splits, name=name: name in splits)]
