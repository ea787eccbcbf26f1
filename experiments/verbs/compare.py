"""`abkt compare MEASURED PREDICTED`: the same requests in two runs, stage by stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.lib.config import STRICT
from experiments.lib.manifest import write_manifest
from experiments.lib.results import write_json
from experiments.lib.verb import VerbCall, verb
from experiments.study.comparison import compare

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """a: folder of the measured run. b: folder of the predicted run (or of any second run)."""

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


def _ms(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds * 1e3:.1f}"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:+.1%}"
