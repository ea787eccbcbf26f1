"""`abkt compare A B`: the same requests in two runs, stage by stage."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from abkt.ranges import bound
from experiments.lib.config import STRICT
from experiments.lib.manifest import manifest
from experiments.lib.results import write_json, write_text
from experiments.lib.verb import VerbCall, verb
from experiments.report import pair
from experiments.report.page import origin, write_page
from experiments.report.terminal import show_lines, show_table, show_verdict
from experiments.study.comparison import compare

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """a: folder of the measured run, or of run A. b: folder of the predicted run, or of run B. csv: also write the stages as CSV.

    max_distortion: limit of mean distortion that the winner keeps; its p99 may be 8 times that.
    """

    a: Path
    b: Path
    max_distortion: float
    csv: bool
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "max_distortion", above=0)


@verb("compare", positional=("a", "b"))
def main(config: CompareConfig, run: VerbCall) -> None:
    result = compare(config.a, config.b)
    a, b = pair.sides(config.a, config.b)
    found = pair.verdict(result, a, b, config.max_distortion)
    write_json(run.out / "compare.json", {**result, **pair.as_json(a, b, found)})
    if config.csv:
        write_text(run.out / "compare.csv", as_csv(result))
    made = manifest(run, [folder / "requests.parquet" for folder in (config.a, config.b)])
    write_json(run.out / "manifest.json", made)
    counts = result["requests"]
    show_table(pair.stages_table(result, a, b), f"{counts['compared']} requests completed in both runs")
    if differ := pair.what_differs(a, b):
        show_lines([f"the runs differ in {differ}"])
    if found is None:
        show_lines([pair.prediction_sentence(result)])
    else:
        show_verdict(found)
    print(f"report: {write_page(run.out / 'report.html', pair.page(result, a, b, found, origin(made)))}")
    print(f"results: {run.out}")


def as_csv(result: Mapping[str, Any]) -> str:
    """A row for each stage and statistic. a_s, b_s: seconds; change: (b − a) / a, with its 95 % interval low, high."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("stage", "statistic", "a_s", "b_s", "change", "low", "high"))
    for stage, errors in result["stages"].items():
        for name in ("mean", "p99"):
            values = (errors[name][key] for key in ("measured_s", "predicted_s", "relative_error", "low", "high"))
            writer.writerow((stage, name, *values))
    return text.getvalue()
