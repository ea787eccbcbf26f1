"""Tables of the outcomes by method and rate, with intervals, and the gates: bounds that our codec's figures must keep."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from experiments.lib.curves import QualityCurve

RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Gate:
    """A figure and its bound. kept: whether the bound holds. low, high: 95 % interval of the value (nan where there is none)."""

    name: str
    value: float
    bound: float
    kept: bool
    low: float = float("nan")
    high: float = float("nan")


def interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean over samples, by bootstrap (percentile); the mean itself where all values are equal or there is one."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(np.mean(values)), float(np.mean(values))
    found = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(seed)).confidence_interval
    return float(found.low), float(found.high)


def table(outcomes: pd.DataFrame) -> pd.DataFrame:
    """A row for each kind, method and rate: means over samples, and the interval of the mean rise in negative log-likelihood (nll)."""
    rows = []
    for (kind, method, rate), group in outcomes.groupby(["kind", "method", "rate"], sort=False):
        rise, of_raw = (group.nll - group.raw_nll).to_numpy(), group.wire_bytes / group.raw_bytes
        low, high = interval(rise)
        rows.append(
            {
                "kind": kind, "method": method, "rate": rate, "samples": len(group), "of_raw": of_raw.mean(),
                "wire_bytes": float(group.wire_bytes.mean()), "nmse": group.nmse.mean(), "attention_error": group.attention_error.mean(),
                "dnll": float(rise.mean()), "dnll_low": low, "dnll_high": high, "dnll_worst": float(np.quantile(rise, 0.99)),
                "kl": group.kl.mean(), "worst_kl": group.worst_kl.mean(), "right": group.right.mean(), "raw_right": group.raw_right.mean(),
                "right_near": group.right_near.mean(), "right_far": group.right_far.mean(), "diverged_at": group.diverged_at.mean(),
                "distortion": group.distortion.mean(), **{name: group[name].mean() for name in group if name.startswith("right_to_")},
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def at_equal_bytes(outcomes: pd.DataFrame, ours: str, theirs: str) -> pd.DataFrame:
    """For each sample and rate of theirs: nll of the finest point of ours with no more bytes, minus nll of theirs."""
    steady = outcomes[~outcomes.rate.str.contains("then")]
    rows = []
    for (kind, sample), group in steady.groupby(["kind", "sample"]):
        mine = group[group.method == ours].sort_values("wire_bytes")
        for point in group[group.method == theirs].itertuples():
            fitting = mine[mine.wire_bytes <= point.wire_bytes]
            if len(fitting):
                rows.append(
                    {
                        "kind": kind,
                        "sample": sample,
                        "rate": point.rate,
                        "less": float(fitting.iloc[-1].nll - point.nll),
                        "raw_nll": point.raw_nll,
                    }
                )
    return pd.DataFrame(rows, columns=["kind", "sample", "rate", "less", "raw_nll"])


def bytes_saved(outcomes: pd.DataFrame, ours: str, theirs: str, kind: str, seed: int = 0) -> tuple[float, float, float]:
    """Share of their bytes that ours saves at their mean rise in nll, with its 95 % interval by bootstrap over samples.

    The share is nan if ours does not reach that rise. An end of the interval is nan if that happens in more than one of 40 resamples.
    """
    here = outcomes[(outcomes.kind == kind) & ~outcomes.rate.str.contains("then")].assign(rise=lambda rows: rows.nll - rows.raw_nll)
    mine, other = here[here.method == ours], here[here.method == theirs].set_index("sample").sort_index()
    rises, sizes = (mine.pivot_table(index="sample", columns="rate", values=name).loc[other.index] for name in ("rise", "wire_bytes"))

    def saved(of: np.ndarray) -> float:
        reached = sizes.to_numpy()[of].mean(0)[rises.to_numpy()[of].mean(0) <= other.rise.to_numpy()[of].mean()]
        return 1 - float(reached.min() / other.wire_bytes.to_numpy()[of].mean()) if len(reached) else float("-inf")

    every, rng = np.arange(len(other)), np.random.default_rng(seed)
    low, high = np.quantile([saved(rng.choice(every, len(every))) for _ in range(RESAMPLES)], (0.025, 0.975), method="nearest")
    value, low, high = (found if np.isfinite(found) else float("nan") for found in (saved(every), float(low), float(high)))
    return value, low, high


def gates(outcomes: pd.DataFrame) -> list[Gate]:
    """All gates for which the outcomes have the methods."""
    found: list[Gate] = []
    there = set(outcomes.method)
    for ours, theirs in (("ours", "uniform"), ("ours-entropy", "uniform-entropy")):
        if {ours, theirs} <= there:
            found += _never_worse(outcomes, ours, theirs)
    best = next((name for name in ("ours-entropy", "ours") if name in there), None)
    for kind in sorted(set(outcomes.kind)):
        for theirs, least in (("kivi4", 0.25), ("kivi3", 0.25), ("cachegen", 0.35), ("cachegen2", 0.35)):
            if best and theirs in there:
                saved, low, high = bytes_saved(outcomes, best, theirs, kind)
                found.append(Gate(f"{kind}: bytes of {theirs} that {best} saves at its nll", saved, least, saved >= least, low, high))
        four = outcomes[(outcomes.kind == kind) & (outcomes.method == "ours") & (outcomes.rate == "4")]
        if len(four):
            rises = ((four.nll - four.raw_nll) / four.raw_nll).to_numpy()
            rise = float(rises.mean())
            found.append(Gate(f"{kind}: rise in nll of ours at 4.25 bits", rise, 0.001, rise <= 0.001, *interval(rises)))
    return found


def _never_worse(outcomes: pd.DataFrame, ours: str, theirs: str) -> list[Gate]:
    found, pairs = [], at_equal_bytes(outcomes, ours, theirs)
    for (kind, rate), group in pairs.groupby(["kind", "rate"], sort=False):
        low, high = interval(group.less.to_numpy())
        allowed = 0.0002 * float(group.raw_nll.mean())
        found.append(
            Gate(f"{kind}: {ours} less {theirs}, nats at {rate} bits", float(group.less.mean()), allowed, high <= allowed, low, high)
        )
    return found


def library(outcomes: pd.DataFrame, calibration: str, methods: tuple[str, ...] = ("ours", "ours-entropy")) -> list[QualityCurve]:
    """Quality curves of each prompt, for the methods whose codec reports its distortion. calibration: its digest, empty for none."""
    steady = outcomes[~outcomes.rate.str.contains("then") & outcomes.method.isin(methods)]
    found = []
    for (kind, method, _), group in steady.groupby(["kind", "method", "sample"], sort=False):
        points = group.sort_values("wire_bytes").drop_duplicates("wire_bytes")
        columns = (points.wire_bytes / points.raw_bytes, points.distortion, points.nll - points.raw_nll, points.kl)
        share, distortion, rise, kl = (tuple(float(f"{value:.5g}") for value in column) for column in columns)
        tokens = int(points.tokens.iloc[0])
        found.append(QualityCurve(str(kind), str(method), tokens, share, distortion, rise, kl, calibration))
    return found


def as_rows(found: list[Gate]) -> list[dict[str, object]]:
    return [asdict(gate) for gate in found]
