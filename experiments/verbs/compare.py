"""`abkt compare MEASURED PREDICTED`: the same requests in two runs, joined, stage by stage, with paired intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from abkt.records import SCHEMA_VERSION as RECORDS_VERSION
from abkt.records import STAGES, check_version
from experiments.lib import intervals
from experiments.lib.config import STRICT
from experiments.lib.manifest import write_manifest
from experiments.lib.results import read_json, read_records, write_json
from experiments.lib.verb import VerbCall, verb
from experiments.study.folder import twin
from experiments.study.ranking import rank, regret

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import ConfigDict

SCHEMA_VERSION = 2
MEASURES = (*(f"{stage}_exposed_s" for stage in STAGES), "transfer_exposed_s", "ttft_s", "tpot_s", "e2e_s")
SAME = ("isl", "osl")  # what makes a request the same one in both runs


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """a: the folder of the measured run. b: of the predicted one (or of any second run)."""

    a: Path
    b: Path
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT


@verb("compare", positional=("a", "b"))
def main(config: CompareConfig, run: VerbCall) -> None:
    result = compare(config.a, config.b)
    write_json(run.out / "compare.json", result)
    write_manifest(run, [folder / "requests.parquet" for folder in (config.a, config.b)])
    show(result)
    print(f"results: {run.out}")


def compare(measured: Path, predicted: Path) -> dict[str, Any]:
    """Mean and p99 of each stage over the requests that completed in both, and the errors of `predicted`.

    error = predicted - measured, relative to measured, with the 95 % interval of the relative error (low, high); share_of_e2e: the mean
    error as a share of the measured mean E2E, which says whether a large relative error of a small stage matters. mean_absolute_s: mean
    of the error of each request, signs dropped. Raises ValueError where the folders hold no records, records of another schema version,
    no common request, or other requests under the same ids.
    """
    for folder in (measured, predicted):
        _check_version(folder)
    left, right = read_records(measured / "requests.parquet"), read_records(predicted / "requests.parquet")
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
    both = both.sort_values(["arrival_s_a", "request_id"], kind="stable")  # blocks of the bootstrap are stretches of time
    e2e_s, places = float(both.e2e_s_a.mean()), intervals.paired_draws(len(both))
    return {
        "schema_version": SCHEMA_VERSION,
        "requests": {"measured": len(left), "predicted": len(right), "compared": len(both)},
        "stages": {_stage(name): _errors(both[f"{name}_a"], both[f"{name}_b"], e2e_s, places) for name in MEASURES},
    }


def compare_twins(folder: Path, policies: Sequence[str], max_distortion: float) -> dict[str, Any]:
    """Of a study: every policy in both worlds, what each world picks, and the regret of having believed the model."""
    worlds = {w: {p: read_json(twin(folder, w, p) / "summary.json") for p in policies} for w in ("real", "model")}
    hardware, model = rank(worlds["real"], max_distortion), rank(worlds["model"], max_distortion)
    return {
        "schema_version": SCHEMA_VERSION,
        "max_distortion": max_distortion,
        "policies": {policy: compare(twin(folder, "real", policy), twin(folder, "model", policy)) for policy in policies},
        "hardware": asdict(hardware),
        "model": asdict(model),
        "regret": asdict(regret(model, hardware)),
    }


def _check_version(folder: Path) -> None:
    summary = folder / "summary.json"
    check_version(read_json(summary).get("schema_version") if summary.exists() else RECORDS_VERSION, folder)


def _errors(measured: pd.Series, predicted: pd.Series, e2e_s: float, places: Any) -> dict[str, Any]:
    error_s = predicted - measured
    a, b = measured.to_numpy(float), predicted.to_numpy(float)
    return {
        "mean": _pair(measured.mean(), predicted.mean(), intervals.relative(a, b, np.nanmean, places)),
        "p99": _pair(measured.quantile(0.99), predicted.quantile(0.99), intervals.relative(a, b, intervals.p99, places)),
        "mean_absolute_s": float(error_s.abs().mean()),
        "share_of_e2e": float(error_s.mean()) / e2e_s if e2e_s > 0 else math.nan,
    }


def _pair(measured: float, predicted: float, interval: intervals.Interval) -> dict[str, float]:
    """The relative error is nan where nothing was measured to be relative to."""
    relative = (predicted - measured) / measured if measured > 1e-9 else math.nan
    found = {"measured_s": float(measured), "predicted_s": float(predicted), "relative_error": float(relative)}
    return {**found, "low": interval.low, "high": interval.high}


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    counts = result["requests"]
    table = Table(title=f"{counts['compared']} requests completed in both runs; times in ms", title_justify="left")
    for heading in ("stage", "mean measured", "predicted", "error [95 %]", "p99 measured", "predicted", "error [95 %]", "of E2E"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, errors in result["stages"].items():
        table.add_row(stage, *_cells(errors["mean"]), *_cells(errors["p99"]), _percent(errors["share_of_e2e"]))
    Console(width=140).print(table)


def _cells(pair: dict[str, float]) -> tuple[str, str, str]:
    low, high = (_percent(pair[end]).removesuffix("%") for end in ("low", "high"))
    return _ms(pair["measured_s"]), _ms(pair["predicted_s"]), f"{_percent(pair['relative_error'])} [{low}, {high}]"


def _stage(measure: str) -> str:
    return measure.removesuffix("_s").removesuffix("_exposed")


def _ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds * 1e3:.1f}"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:+.1%}"
