"""The figures of a validation, from its records alone.

error: predicted / measured - 1, where measured is the mean of the repeats. noise: the same for one repeat against the mean of the others;
even a perfect simulator would differ by that much from the machine's next run. targets.py judges the errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from abkt.profile.schema import Profile
from abkt.records import SLO, STAGES
from experiments.lib import intervals
from experiments.study.ranking import Regret, StudyVerdict, rank, regret
from experiments.validation.folder import ValidationCase
from sim import interval as predicted_interval

MEASURES = {**{stage: f"{stage}_exposed_s" for stage in STAGES}, "ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s"}
QUANTILES = {"mean": np.nanmean, "p99": lambda values: np.nanquantile(values, 0.99)}
SHARE_OF_E2E = 0.01  # a stage with a smaller share of E2E is not scored, because its relative error does not matter


def errors(cases: Sequence[ValidationCase]) -> pd.DataFrame:
    """A row for each condition, policy, stage and quantile. measured_low_s, measured_high_s: least and largest of the repeats."""
    rows = []
    for case in cases:
        done = [_done(rows_of) for rows_of in case.measured]
        predicted = _done(case.predicted)
        for (stage, column), (quantile, statistic) in ((m, q) for m in MEASURES.items() for q in QUANTILES.items()):
            measured = np.array([_of(rows_of[column], statistic) for rows_of in done])
            said = _of(predicted[column], statistic)
            mean = float(measured.mean())
            rows.append(
                {
                    "condition": case.condition, "policy": case.policy, "stage": stage, "quantile": quantile, "measured_s": mean,
                    "measured_low_s": float(measured.min()), "measured_high_s": float(measured.max()), "predicted_s": said,
                    "error": said / mean - 1 if mean > 1e-9 else math.nan, "noise": noise(measured),
                    "share_of_e2e": mean / float(np.mean([_of(rows_of.e2e_s, statistic) for rows_of in done])),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def noise(repeats: np.ndarray) -> float:
    """Mean of |one - mean of the others| / mean of the others; nan with one repeat."""
    if len(repeats) < 2:
        return math.nan
    others = (repeats.sum() - repeats) / (len(repeats) - 1)
    return float(np.mean(np.abs(repeats - others) / np.where(others > 1e-9, others, np.nan)))


def by_stage(found: pd.DataFrame) -> pd.DataFrame:
    """A row for each stage and quantile: mean and largest size of the error over conditions and policies, its bias, and the noise."""
    rows = []
    for (quantile, stage), part in found.groupby(["quantile", "stage"], sort=False):
        part = part[part.share_of_e2e >= SHARE_OF_E2E].dropna(subset=["error"])
        size = part.error.abs()
        rows.append(
            {
                "stage": stage, "quantile": quantile, "cases": len(part), "measured_s": part.measured_s.mean(), "error": size.mean(),
                "bias": part.error.mean(), "worst": size.max(), "noise": part.noise.mean(),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def by_condition(found: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for queueing, TTFT and E2E of each condition: mean size of the error over policies, its bias, and the noise."""
    rows = []
    for (condition, stage), part in found[found["quantile"] == "mean"].groupby(["condition", "stage"], sort=False):
        if stage in ("queue", "ttft", "e2e"):
            size = part.error.abs()
            rows.append(
                {
                    "condition": condition, "stage": stage, "measured_s": part.measured_s.mean(), "error": size.mean(),
                    "bias": part.error.mean(), "worst": size.max(), "noise": part.noise.mean(),
                }
            )  # fmt: skip
    return rows


def coverage(cases: Sequence[ValidationCase], profile: Profile) -> dict[str, float]:
    """Share of measured requests whose TTFT and E2E lie within the simulator's 95 % interval of that request."""
    inside: dict[str, list[float]] = {"ttft": [], "e2e": []}
    table = predicted_interval.residuals(profile)
    for case in cases:
        rows = case.predicted
        of_node = {str(node): table for name in ("prefill_node", "decode_node") for node in rows[name].unique()}
        columns = pd.DataFrame(predicted_interval.intervals(list(rows.itertuples()), of_node)).assign(request_id=rows.request_id)
        for measured in case.measured:
            both = _done(measured).merge(columns, on="request_id")
            for name, held in inside.items():
                held += list((both[f"{name}_s"] >= both[f"{name}_low_s"]) & (both[f"{name}_s"] <= both[f"{name}_high_s"]))
    return {name: float(np.mean(held)) if held else math.nan for name, held in inside.items()}


def rank_correlation(cases: Sequence[ValidationCase]) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation over the policies of each condition, of mean TTFT and of goodput; nan where all policies are equal."""
    from scipy.stats import spearmanr

    found: dict[str, dict[str, float]] = {}
    for condition, group in by_condition_of(cases).items():
        pairs = {
            "ttft": [(c.predicted_summary["ttft_s"]["mean"], _mean(c, lambda s: s["ttft_s"]["mean"])) for c in group],
            "goodput": [(c.predicted_summary["goodput_per_s"], _mean(c, lambda s: s["goodput_per_s"])) for c in group],
        }
        found[condition] = {}
        for name, of in pairs.items():
            told, was = zip(*of, strict=True)
            equal = len(of) < 2 or np.ptp(told) == 0 or np.ptp(was) == 0
            found[condition][name] = math.nan if equal else float(spearmanr(told, was).statistic)
    return found


def regrets(cases: Sequence[ValidationCase], max_distortion: float, slo: SLO) -> list[Regret]:
    """The decision regret under each condition, over all repeats together, with paired intervals."""
    found = []
    for condition, group in by_condition_of(cases).items():
        simulated = rank({c.policy: c.predicted_summary for c in group}, max_distortion)
        hardware = hardware_verdict(group, max_distortion)
        base = replace(regret(simulated, hardware), condition=condition)
        if simulated.pick is None or hardware.pick is None:
            found.append(base)
            continue
        by_name = {case.policy: case for case in group}
        best, picked = (together(by_name[name].measured, slo) for name in (hardware.pick, simulated.pick))
        places = intervals.paired_draws(len(best))
        good = intervals.difference(picked.good.to_numpy(float), best.good.to_numpy(float), np.nanmean, places)
        later = intervals.difference(best.ttft_s.to_numpy(float), picked.ttft_s.to_numpy(float), np.nanmean, places)
        lost = float((best.good.mean() - picked.good.mean()) / best.good.mean()) if best.good.mean() > 0 else 0.0
        found.append(
            replace(
                base, goodput_share=lost, ttft_s=float(picked.ttft_s.mean() - best.ttft_s.mean()), goodput_interval=good,
                ttft_interval=later, counted=0.0 if good.holds(0.0) else lost,
            )
        )  # fmt: skip
    return found


def hardware_verdict(group: Sequence[ValidationCase], max_distortion: float) -> StudyVerdict:
    """The machine's ranking of the policies of one condition, over all repeats."""
    return rank({case.policy: _pooled(case) for case in group}, max_distortion)


def drift(before: Profile, after: Profile) -> dict[str, float]:
    """Change of the machine: how much longer each stage takes by the second profile, in the middle of the first profile's range."""
    found = {}
    for stage in ("prefill", "encode/4", "expand/4", "decode", "transport"):
        at = {name: (before.fit(stage).low[name] + before.fit(stage).high[name]) / 2 for name in before.fit(stage).low}
        found[stage] = after.fit(stage).seconds(**at) / before.fit(stage).seconds(**at) - 1
    return found


def together(repeats: Sequence[pd.DataFrame], slo: SLO) -> pd.DataFrame:
    """All repeats in one table, each in order of arrival, with the column `good`: completed within the SLO."""
    rows = pd.concat([r.sort_values("request_id") for r in repeats], ignore_index=True)
    good = (rows.outcome == "completed") & (rows.ttft_s <= slo.ttft_s) & ~(rows.tpot_s > slo.tpot_s)
    return rows.assign(good=good)


def _pooled(case: ValidationCase) -> dict[str, Any]:
    """The means over the repeats of the figures that `rank` reads."""
    return {
        "goodput_per_s": _mean(case, lambda s: s["goodput_per_s"]),
        "ttft_s": {"mean": _mean(case, lambda s: s["ttft_s"]["mean"])},
        "distortion": {name: _mean(case, lambda s, name=name: (s["distortion"] or {}).get(name)) for name in ("mean", "p99")},
    }


def _mean(case: ValidationCase, of: Any) -> float:
    values = [of(summary) for summary in case.measured_summaries]
    return math.nan if any(value is None for value in values) else float(np.mean(values))


def by_condition_of(cases: Sequence[ValidationCase]) -> dict[str, list[ValidationCase]]:
    """condition -> its cases, in order."""
    found: dict[str, list[ValidationCase]] = {}
    for case in cases:
        found.setdefault(case.condition, []).append(case)
    return found


def _done(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.outcome == "completed"]


def _of(values: pd.Series, statistic: Any) -> float:
    known = values.dropna()
    return float(statistic(known.to_numpy())) if len(known) else math.nan
