"""Tables of a run of `abkt quality`, as Markdown: `python -m experiments.quality.table DIR|FILE.parquet [ours=METHOD]`.

Curves are compared where they are not measured by interpolating the logarithm of the mean divergence (KL) against the logarithm of the mean
bytes, and never beyond their ends. Intervals are 95 %, by bootstrap over prompts; a comparison draws the same prompts for both codecs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.quality.gates import interval
from experiments.quality.saved import FILE

RESAMPLES = 1000
BITS = (1.0, 1.5, 2.0, 3.0, 4.0)
OURS = ("auto", "klt", "ours_klt", "embedded-position", "embedded", "embedded-flat")
SIMPLE = ("embedded-uniform", "embedded-flat", "embedded-position", "matter", "kvtuner", "cachegen-widths")
"""Simple rules: without a transform, with the coder that is there."""
UNCALIBRATED = "embedded"
UNIFORM = "embedded-uniform"
WANTED = (0.1, 0.02, 0.01, 0.0077, 0.0014, 0.001)
"""Divergences (KL) at which the bytes of all codecs are shown."""
BY_KIND = 0.01
LEAST_KL = 1e-9  # a divergence of 0 has no logarithm


def read(place: Path) -> pd.DataFrame:
    """The outcomes of a run, finished or not, from its folder or a .parquet. Raises ValueError, one line, where there are none."""
    return _readable(pd.read_parquet(place) if place.suffix == ".parquet" and place.is_file() else _rows(place))


def _rows(folder: Path) -> pd.DataFrame:
    path = folder / FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {FILE}; give the out= of `abkt quality`")
    rows: list[dict[str, object]] = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # after the last line break is nothing, or an unfinished line
        rows += json.loads(line)["outcomes"]
    if not rows:
        raise ValueError(f"{path} is empty; let the run measure at least one codec")
    return pd.DataFrame(rows)


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame[~frame.rate.str.contains("then")].drop_duplicates(["sample", "method", "rate"], keep="last")
    return frame.assign(of_raw=frame.wire_bytes / frame.raw_bytes, dnll=frame.nll - frame.raw_nll)


class Curves:
    """Mean bytes (of raw) and KL of each method and rate over any choice of prompts.

    Parameters
    ----------
    frame : as `read` gives it. Only prompts on which every method of `methods` was measured count.
    """

    def __init__(self, frame: pd.DataFrame, methods: Sequence[str]) -> None:
        rates = frame[frame.method.isin(methods)].groupby("sample").apply(lambda g: set(zip(g.method, g.rate)), include_groups=False)
        most = max(map(len, rates))
        self.samples = [sample for sample, found in rates.items() if len(found) == most]
        here = frame[frame["sample"].isin(self.samples) & frame.method.isin(methods)]
        self._tables = {
            method: tuple(
                group.pivot(index="sample", columns="rate", values=name).loc[self.samples].to_numpy() for name in ("of_raw", "kl")
            )
            for method, group in here.groupby("method")
        }

    def of(self, method: str, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(mean of_raw, mean KL) of each rate, from few bytes to many; drawn: which of the prompts count, and how often."""
        sizes, kl = (table[drawn].mean(0) for table in self._tables[method])
        order = np.argsort(sizes)
        return sizes[order], np.maximum(kl[order], LEAST_KL)

    def draws(self, seed: int = 0) -> Iterator[np.ndarray]:
        rng, n = np.random.default_rng(seed), len(self.samples)
        return (rng.integers(0, n, n) for _ in range(RESAMPLES))

    @property
    def every(self) -> np.ndarray:
        return np.arange(len(self.samples))


def bytes_at(sizes: np.ndarray, kl: np.ndarray, wanted: float) -> float:
    """Bytes at which a curve first reaches a KL; inf where it does not, and its fewest where those are good enough already."""
    best = np.minimum.accumulate(kl)
    if wanted < best[-1]:
        return float("inf")
    if wanted >= best[0]:
        return float(sizes[0])
    i = int(np.argmax(best <= wanted))
    share = (np.log(best[i - 1]) - np.log(wanted)) / (np.log(best[i - 1]) - np.log(best[i]))
    return float(np.exp(np.log(sizes[i - 1]) + share * (np.log(sizes[i]) - np.log(sizes[i - 1]))))


def kl_at(sizes: np.ndarray, kl: np.ndarray, of_raw: float) -> float:
    """KL of a curve at some bytes; nan outside of what was measured."""
    if len(sizes) < 2 or not sizes[0] <= of_raw <= sizes[-1]:
        return float("nan")
    return float(np.exp(np.interp(np.log(of_raw), np.log(sizes), np.log(kl))))


def rates(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each method and rate, over all kinds."""
    rows = []
    for (method, rate), group in frame.groupby(["method", "rate"], sort=False):
        low, high = interval(group.dnll.to_numpy())
        text = group[group.kind == "encyclopaedia"]
        rows.append(
            {
                "codec": method, "rate": rate, "prompts": len(group), "of raw": f"{group.of_raw.mean():.3f}",
                "KL": f"{group.kl.mean():.4f}", "worst 1 %": f"{group.worst_kl.mean():.3f}",
                "ΔNLL": f"{group.dnll.mean():+.4f} [{low:+.4f}, {high:+.4f}]",
                "same greedy token": f"{group.agreement.mean():.3f}",
                "right (raw)": _right(group[group.kind.isin(("recall", "needles"))]),
                "perplexity (raw)": f"{np.exp(text.nll.mean()):.2f} ({np.exp(text.raw_nll.mean()):.2f})" if len(text) else "",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def by_kind(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean KL of each method and rate by kind of prompt, after the share of raw that it took there."""
    mean = frame.groupby(["method", "rate", "kind"], sort=False)[["of_raw", "kl"]].mean()
    cells = mean.apply(lambda row: f"{row.of_raw:.3f}: {row.kl:.4f}", axis=1)
    return cells.unstack("kind", sort=False).fillna("").reset_index()


def reaching(frame: pd.DataFrame) -> pd.DataFrame:
    """Bytes (of raw) at which each method reaches each of WANTED, over all prompts."""
    found = {}
    for method in dict.fromkeys(frame.method):
        curves = Curves(frame, (method,))
        found[method] = [_bytes(*curves.of(method, curves.every), kl) for kl in WANTED]
    columns = [f"KL {kl:g}" for kl in WANTED]
    return pd.DataFrame.from_dict(found, orient="index", columns=columns).rename_axis("codec").reset_index()


def reaching_by_kind(frame: pd.DataFrame) -> pd.DataFrame:
    """Bytes (of raw) at which each method reaches a KL of BY_KIND on each kind of prompt."""
    rows = []
    for method in dict.fromkeys(frame.method):
        row = {"codec": method}
        for kind in dict.fromkeys(frame.kind):
            here = frame[(frame.kind == kind) & (frame.method == method)]
            if len(here):
                curves = Curves(here, (method,))
                row[kind] = _bytes(*curves.of(method, curves.every), BY_KIND)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def _bytes(sizes: np.ndarray, kl: np.ndarray, wanted: float) -> str:
    found = bytes_at(sizes, kl, wanted)
    if not np.isfinite(found):
        return "not reached"
    return ("at most " if wanted >= kl[0] and len(sizes) > 1 else "") + f"{found:.3f}"


def against(frame: pd.DataFrame, ours: str) -> pd.DataFrame:
    """The share of its bytes that ours saves at the KL of each rate of every other method; negative where ours needs more."""
    rows = []
    for method in dict.fromkeys(frame.method):
        if method == ours:
            continue
        curves = Curves(frame, (ours, method))
        if not curves.samples:
            continue
        sizes, kl = curves.of(method, curves.every)
        for i in range(len(sizes)):

            def saved(drawn: np.ndarray, i: int = i, curves: Curves = curves, method: str = method) -> float:
                theirs, at = (values[i] for values in curves.of(method, drawn))
                return 1 - bytes_at(*curves.of(ours, drawn), at) / theirs

            low, high = np.quantile([saved(drawn) for drawn in curves.draws()], (0.025, 0.975), method="nearest")
            value = saved(curves.every)
            fewest = bytes_at(*curves.of(ours, curves.every), kl[i]) == curves.of(ours, curves.every)[0][0]
            rows.append(
                {
                    "against": method, "prompts": len(curves.samples), "its bytes": f"{sizes[i]:.3f}", "its KL": f"{kl[i]:.4f}",
                    "ours saves": ("at least " if fewest else "") + f"{_percent(value)} [{_percent(low)}, {_percent(high)}]",
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def laws(frame: pd.DataFrame, ours: str) -> pd.DataFrame:
    """KL of ours minus that of uniform order, of no calibration and of the best simple rule, at equal bytes (bits a value / 16 of raw)."""
    there, rows = set(frame.method), []
    named = {"uniform": (UNIFORM,), "uncalibrated": (UNCALIBRATED,), "best simple rule": SIMPLE}
    for name, methods in named.items():
        others = [method for method in methods if method in there and method != ours]
        if not others:
            continue
        curves = Curves(frame, (ours, *others))
        for bits in BITS if curves.samples else ():

            def less(drawn: np.ndarray, bits: float = bits, curves: Curves = curves, others: list[str] = others) -> float:
                found = [kl_at(*curves.of(method, drawn), bits / 16) for method in others]
                found = [value for value in found if np.isfinite(value)]
                return kl_at(*curves.of(ours, drawn), bits / 16) - (min(found) if found else float("nan"))

            value = less(curves.every)
            drawn = [x for x in map(less, curves.draws()) if np.isfinite(x)]
            if not np.isfinite(value) or not drawn:
                said = {"KL": "not measured there", "kept": ""}
                rows.append({"ours less": name, "bits": f"{bits:g}", "prompts": len(curves.samples)} | said)
                continue
            low, high = np.quantile(drawn, (0.025, 0.975))
            kept = "yes" if high <= 0 else "**no**" if low > 0 else "cannot tell"
            rows.append(
                {"ours less": name, "bits": f"{bits:g}", "prompts": len(curves.samples), "KL": f"{value:+.4f} [{low:+.4f}, {high:+.4f}]",
                 "kept": kept}
            )  # fmt: skip
    return pd.DataFrame(rows)


def markdown(frame: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(map(str, frame.columns)) + " |", "|" + "---|" * len(frame.columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in frame.itertuples(index=False)])


def report(folder: Path, ours: str = "") -> str:
    """All tables of a run. ours: the method that is compared with the others; empty: the first of OURS that is there."""
    frame = read(folder)
    chosen = ours or next((method for method in OURS if method in set(frame.method)), "")
    if chosen not in set(frame.method):
        raise ValueError(f"{folder} has no outcomes of {chosen or ' or '.join(OURS)}; there are {', '.join(dict.fromkeys(frame.method))}")
    counts = ", ".join(f"{count} {kind}" for kind, count in frame.groupby("kind")["sample"].nunique().items())
    parts = (
        (f"Codecs and rates ({counts} prompts of about {int(frame.tokens.median())} tokens)", rates(frame)),
        ("Bytes (of raw) at which a KL is reached", reaching(frame)),
        (f"Bytes (of raw) at which KL {BY_KIND:g} is reached, by kind", reaching_by_kind(frame)),
        ("Bytes (of raw) and mean KL by kind", by_kind(frame)),
        (f"Bytes of {chosen} at the KL of the others", against(frame, chosen)),
        (f"Laws: KL of {chosen} less that of simple choices, at equal bytes", laws(frame, chosen)),
    )
    return "\n\n".join(f"### {title}\n\n{markdown(table)}" for title, table in parts)


def _right(group: pd.DataFrame) -> str:
    return f"{group.right.mean():.3f} ({group.raw_right.mean():.3f})" if len(group) else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if np.isfinite(share) else "not reached"


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("ours=")]
    asked = next((argument.removeprefix("ours=") for argument in sys.argv[1:] if argument.startswith("ours=")), "")
    if not folders:
        sys.exit("give the folder of a run: python -m experiments.quality.table DIR [ours=METHOD]")
    try:
        for place in folders:
            print(report(Path(place), asked))
    except ValueError as error:
        print(f"table: {error}", file=sys.stderr)
        sys.exit(2)
