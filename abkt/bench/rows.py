"""Results of a benchmark: named values, each beside what the same run measured as its yardstick."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BenchRow:
    """value in `unit`; yardstick: the same of a plain copy of the same raw bytes, or of what the name says; None where there is none."""

    name: str
    value: float
    unit: str
    yardstick: float | None = None


def save(path: Path, rows: Sequence[BenchRow], facts: dict[str, str]) -> None:
    """JSON, whole or not at all: the facts of the run (device, versions) and its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"facts": facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    part.replace(path)


def table(rows: Sequence[BenchRow]) -> str:
    """Rows as aligned text."""
    cells = [("", "value", "", "yardstick")]
    for row in rows:
        cells.append((row.name, f"{row.value:.4g}", row.unit, "" if row.yardstick is None else f"{row.yardstick:.4g}"))
    widths = [max(len(line[i]) for line in cells) for i in range(4)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in cells]
    return "\n".join(lines)
