"""Prediction intervals: 95 % intervals of each request's TTFT and E2E, from the residuals of the profile's tables.

Each stage's time has an independent, normally distributed relative error, whose standard deviation is the residual of the stage's table.
Half width = 1.96 sqrt(sum of (residual x seconds)^2). Waiting for prefill has the error of prefill. A table without samples (from a data
sheet) has no known error: its stage counts as free of error, and the summary names it.

Not modelled: errors that many stages share (a slower clock); errors that grow with load; work that no table describes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from abkt.profile.schema import Profile
from abkt.records import RequestRecord

LEVEL, DEVIATIONS = 0.95, 1.959964
COLUMNS = ("ttft_low_s", "ttft_high_s", "e2e_low_s", "e2e_high_s")


def residuals(profile: Profile) -> dict[str, float]:
    """Stage -> relative error; NaN where no table of the stage was measured."""
    encode, expand = (_worst(profile, f"{stage}/") for stage in ("encode", "expand"))
    prefill, wire, decode = (_worst(profile, stage) for stage in ("prefill", "transport", "decode"))
    return {"queue": prefill, "prefill": prefill, "encode": encode, "wire": wire, "expand": expand, "decode": decode}


def intervals(records: Sequence[RequestRecord], of_node: Mapping[str, Mapping[str, float]]) -> dict[str, list[float]]:
    """Interval columns for the requests; NaN for requests that were not completed. of_node: node name -> its residuals by stage."""
    columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
    nothing: dict[str, float] = {}
    for r in records:
        source, target = of_node.get(r.prefill_node, nothing), of_node.get(r.decode_node, nothing)
        colocated = r.decode_node != "" and r.prefill_node == r.decode_node  # as RequestRecord has it; a row of a table will do too
        first_s = 0.0 if colocated else r.decode_token_s - (r.finish_s - r.decode_exposed_s)
        before = (
            _off(source, "queue", r.queue_exposed_s)
            + _off(source, "prefill", r.prefill_exposed_s)
            + _off(source, "encode", r.encode_exposed_s)
            + _off(source, "wire", r.wire_exposed_s)
            + _off(target or source, "expand", r.expand_exposed_s)
        )
        for name, seconds, decode_s in (("ttft", r.ttft_s, first_s), ("e2e", r.e2e_s, r.decode_exposed_s)):
            half_s = DEVIATIONS * math.sqrt(before + _off(target or source, "decode", decode_s))
            columns[f"{name}_low_s"].append(max(seconds - half_s, 0.0))  # in this order NaN stays NaN
            columns[f"{name}_high_s"].append(seconds + half_s)
    return columns


def summary(columns: Mapping[str, np.ndarray], of_node: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The prediction part of summary.json: the mean half widths, and the stages whose error was not measured."""
    halves = {}
    for name in ("ttft", "e2e"):
        widths = (columns[f"{name}_high_s"] - columns[f"{name}_low_s"]) / 2
        known = widths[~np.isnan(widths)]
        halves[f"{name}_half_width_s"] = float(known.mean()) if len(known) else math.nan
    unknown = sorted({stage for table in of_node.values() for stage, error in table.items() if math.isnan(error)})
    return {"level": LEVEL, **halves, "error_unknown": unknown}


def _off(table: Mapping[str, float], stage: str, seconds: float) -> float:
    """Variance."""
    error = table.get(stage, math.nan)
    return 0.0 if math.isnan(error) else (error * seconds) ** 2


def _worst(profile: Profile, stage: str) -> float:
    """The largest residual of a stage's tables; NaN where none has samples. `encode/` stands for all depths."""
    tables = [fit for name, fit in profile.fits.items() if name == stage or (stage.endswith("/") and name.startswith(stage))]
    return max((fit.residual for fit in tables if fit.samples), default=math.nan)
