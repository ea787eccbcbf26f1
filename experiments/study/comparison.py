"""Two runs of the same requests, joined request by request: errors of every stage with paired intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abkt.records import SCHEMA_VERSION as RECORDS_VERSION
from abkt.records import STAGES, check_version
from experiments.lib import intervals
from experiments.lib.results import read_json, read_records

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 3
MEASURES = (*(f"{stage}_exposed_s" for stage in STAGES), "transfer_exposed_s", "ttft_s", "tpot_s", "e2e_s")
SAME = ("isl", "osl")  # two records are of the same request if these columns are equal


def compare(measured: Path, predicted: Path) -> dict[str, Any]:
    """Compare two runs of the same requests, over the requests that completed in both.

    Parameters
    ----------
    measured, predicted : folders of two runs, each with requests.parquet.

    Returns
    -------
    For each stage the mean and p99 of both runs in seconds; the relative error (predicted - measured) / measured with its paired 95 %
    interval (low, high); share_of_e2e, the mean error as a share of the measured mean E2E, which says whether a large relative error of a
    small stage matters; and mean_absolute_s, the mean size of the error of a request.

    Raises
    ------
    ValueError
        One line, where a folder holds no records or records of another schema version, or the runs have no request in common, or have
        different requests under the same id.
    """
    for folder in (measured, predicted):
        _check_version(folder)
    left, right = read_records(measured / "requests.parquet"), read_records(predicted / "requests.parquet")
    return compare_records(left, right, measured, predicted)


def compare_records(left: pd.DataFrame, right: pd.DataFrame, measured: object, predicted: object) -> dict[str, Any]:
    """As compare, from records. measured, predicted: names of the two runs, for messages."""
    for run, records in ((measured, left), (predicted, right)):
        if len(twice := records.request_id[records.request_id.duplicated()]):
            raise ValueError(f"{run} has {len(twice)} requests with the id of another one, the first {twice.iloc[0]}; ids must differ")
    joined = left.merge(right, on="request_id", suffixes=("_a", "_b"))
    if joined.empty:
        raise ValueError(f"{measured} and {predicted} have no request in common")
    for name in SAME:
        other = joined[joined[f"{name}_a"] != joined[f"{name}_b"]]
        if len(other):
            row = other.iloc[0]
            values = f"{row[f'{name}_a']} in {measured}, {row[f'{name}_b']} in {predicted}"
            raise ValueError(f"the runs are not of the same requests: request {row.request_id} has {name} {values}")
    both = joined[(joined.outcome_a == "completed") & (joined.outcome_b == "completed")]
    if both.empty:
        raise ValueError(f"no request completed in both {measured} and {predicted}")
    both = both.sort_values(["arrival_s_a", "request_id"], kind="stable")  # so that blocks of the bootstrap are stretches of time
    e2e_s, places = float(both.e2e_s_a.mean()), intervals.paired_draws(len(both))
    return {
        "schema_version": SCHEMA_VERSION,
        "requests": {"measured": len(left), "predicted": len(right), "compared": len(both)},
        "stages": {_stage(name): _errors(both[f"{name}_a"], both[f"{name}_b"], e2e_s, places) for name in MEASURES},
    }


def mean_of_repeats(repeats: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The records of the requests that completed in every repeat, each with its mean times over the repeats."""
    import pandas as pd

    rows = pd.concat([rows[rows.outcome == "completed"] for rows in repeats])
    whole = rows.groupby("request_id").filter(lambda of: len(of) == len(repeats))
    if whole.empty:
        return whole
    first = whole.drop_duplicates("request_id").set_index("request_id")
    times = whole.groupby("request_id")[["arrival_s", *MEASURES]].mean()
    return first.assign(**{name: times[name] for name in times}).reset_index()


def _check_version(folder: Path) -> None:
    summary = folder / "summary.json"
    check_version(read_json(summary).get("schema_version") if summary.exists() else RECORDS_VERSION, folder)


def _errors(measured: pd.Series, predicted: pd.Series, e2e_s: float, places: Any) -> dict[str, Any]:
    error_s = predicted - measured
    a, b = measured.to_numpy(float), predicted.to_numpy(float)
    return {
        "mean": _statistic(measured.mean(), predicted.mean(), intervals.relative(a, b, np.nanmean, places)),
        "p99": _statistic(measured.quantile(0.99), predicted.quantile(0.99), intervals.relative(a, b, intervals.p99, places)),
        "mean_absolute_s": float(error_s.abs().mean()),
        "share_of_e2e": float(error_s.mean()) / e2e_s if e2e_s > 0 else math.nan,
    }


def _statistic(measured: float, predicted: float, interval: intervals.Interval) -> dict[str, float]:
    """The statistics of one stage. The relative error is nan if the measured value is 0 or missing."""
    relative = (predicted - measured) / measured if measured > 1e-9 else math.nan
    found = {"measured_s": float(measured), "predicted_s": float(predicted), "relative_error": float(relative)}
    return {**found, "low": interval.low, "high": interval.high}


def _stage(measure: str) -> str:
    return measure.removesuffix("_s").removesuffix("_exposed")
