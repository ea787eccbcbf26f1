"""The journal of a sweep: one line of JSON for each finished point, so that a sweep that was stopped can resume."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from experiments.lib.results import plain, writing


@dataclass(frozen=True, slots=True)
class Journal:
    """path: of points.jsonl. A row has `point` (its hash), the values of its axes, the figures, and `error` (empty if it was run)."""

    path: Path

    def rows(self) -> dict[str, dict[str, Any]]:
        """The last row of each point, by hash. An unfinished last line, left by a kill, is skipped."""
        if not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        try:
            rows = [json.loads(line) for line in lines]
            return {row["point"]: row for row in rows}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is damaged ({error}); remove it, or give another out=DIR") from None

    def mend(self) -> None:
        """Remove an unfinished last line, left by a kill, so that the next row starts a new line."""
        if self.path.exists() and not (text := self.path.read_bytes()).endswith(b"\n"):
            os.truncate(self.path, text.rfind(b"\n") + 1)

    def add(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row)) + "\n")


def flat(values: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    """Nested values as columns: {"ttft_s": {"mean": 1}} gives {"ttft_s.mean": 1}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}{key}.")
        else:
            found[f"{name}{key}"] = value
    return found


def table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A table with all columns of all rows, in order of appearance. A column of numbers and strings becomes one of strings."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: _column([row.get(name) for row in rows]) for name in names})


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    if len(kinds) > 1 or kinds & {list, dict}:
        return pa.array([None if v is None else str(v) for v in values], pa.string())
    return pa.array(values)
