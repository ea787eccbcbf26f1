"""Role changes in both worlds: when a worker drained and was ready, the requests served afterwards, and the requests open meanwhile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.validation.folder import ValidationCase

Log = Sequence[tuple[float, str, str]]  # (seconds, worker, role from then on); the role is "" while the worker drains


def changes(log: Log) -> dict[tuple[str, str, int], tuple[float, float]]:
    """(worker, role, number of earlier changes to it) -> (began to drain, ready), in seconds; the first is nan where it did not drain."""
    begun: dict[str, float] = {}
    found: dict[tuple[str, str, int], tuple[float, float]] = {}
    for at_s, worker, role in log:
        if not role:
            begun[worker] = at_s
            continue
        number = sum((worker, role) == key[:2] for key in found)
        found[worker, role, number] = (begun.pop(worker, math.nan), at_s)
    return found


def switches(cases: Sequence[ValidationCase]) -> list[dict[str, Any]]:
    """A row for each condition and change, means over policies and repeats.

    drain_s: seconds until the worker was ready. served: requests that it served in the new role. open: requests on the machine during the
    change. ttft_error: relative error of the mean TTFT that the simulator gives those requests. A side without the change has nan.
    """
    rows = []
    for condition in dict.fromkeys(case.condition for case in cases):
        group = [case for case in cases if case.condition == condition]
        predicted = [(changes(case.predicted_summary.get("roles", ())), case.predicted) for case in group]
        measured = [
            (changes(s.get("roles", ())), rows_of, case.predicted)
            for case in group
            for s, rows_of in zip(case.measured_summaries, case.measured)
        ]
        for key in dict.fromkeys(key for made, *_ in (*predicted, *measured) for key in made):
            spans = [made.get(key, (math.nan, math.nan)) for made, *_ in measured]
            said = [made.get(key, (math.nan, math.nan)) for made, _ in predicted]
            during = [_during(rows_of, told, *span) for (_, rows_of, told), span in zip(measured, spans)]
            ours, theirs = (float(np.sum([d[i] for d in during])) for i in (1, 2))
            rows.append(
                {
                    "condition": condition, "worker": key[0], "role": key[1],
                    "predicted_at_s": _mean([a for a, _ in said]), "measured_at_s": _mean([a for a, _ in spans]),
                    "predicted_drain_s": _mean([b - a for a, b in said]), "measured_drain_s": _mean([b - a for a, b in spans]),
                    "predicted_served": _mean([_served(rows_of, *key[:2]) for _, rows_of in predicted]),
                    "measured_served": _mean([_served(rows_of, *key[:2]) for _, rows_of, _ in measured]),
                    "open": float(np.mean([d[0] for d in during])), "ttft_error": theirs / ours - 1 if ours > 0 else math.nan,
                }
            )  # fmt: skip
    return rows


def placement(cases: Sequence[ValidationCase]) -> dict[str, float]:
    """By condition: share of the machine's requests that ran on the workers that the simulator predicted."""
    found: dict[str, list[float]] = {}
    for case in cases:
        told = case.predicted.set_index("request_id")[["prefill_node", "decode_node"]]
        for rows_of in case.measured:
            was = rows_of.set_index("request_id")[["prefill_node", "decode_node"]]
            found.setdefault(case.condition, []).append(float((was == told.reindex(was.index)).all(axis=1).mean()))
    return {condition: float(np.mean(shares)) for condition, shares in found.items()}


def _during(rows_of: pd.DataFrame, told: pd.DataFrame, begun_s: float, ready_s: float) -> tuple[int, float, float]:
    """The requests that were open while a worker changed: their number, the sum of their TTFT, and the sum of the predicted TTFT."""
    there = rows_of[(rows_of.arrival_s <= ready_s) & (rows_of.finish_s >= begun_s) & (rows_of.outcome == "completed")]
    both = there.merge(told[told.outcome == "completed"], on="request_id", suffixes=("", "_told"))
    return len(both), float(both.ttft_s.sum()), float(both.ttft_s_told.sum())


def _served(rows_of: pd.DataFrame, worker: str, role: str) -> float:
    return float((rows_of[f"{role}_node"] == worker).sum())


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
