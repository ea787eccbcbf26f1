"""Results of a bench: named values, each beside a yardstick that was measured in the same run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class BenchRow:
    """value: the measured quantity, in `unit`. yardstick: the same quantity of a plain copy of the same raw bytes, or of the comparison
    that the name states; None if there is none."""

    name: str
    value: float
    unit: str
    yardstick: float | None = None


def save(path: Path, rows: Sequence[BenchRow], facts: dict[str, str]) -> None:
    """Write the facts of the run (device, versions) and its rows as JSON. The file is replaced in one step, so it is never half written."""
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
