"""Answers in a file, one JSON line each, so that a run that was stopped can resume."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.lib.results import read_json, write_json
from experiments.longbench.answer import COLUMNS, Answer


@dataclass(slots=True)
class Rows:
    """rows.jsonl of a folder. settings: all that a row depends on. done: (task, id, method) of completed rows; failed ones are run again.

    An unfinished last row is dropped. Raises ValueError, one line, where the folder has rows of other settings or a damaged row.
    """

    folder: Path
    settings: Mapping[str, str]
    done: set[tuple[str, str, str]] = field(init=False)

    def __post_init__(self) -> None:
        stand = self.folder / "settings.json"
        if stand.exists():
            was = read_json(stand)
            other = sorted(key for key in {**was, **self.settings} if was.get(key) != self.settings.get(key))
            if other:
                raise ValueError(
                    f"out={self.folder} has rows of another {', '.join(other)}; give another out, or the same settings to resume"
                )
        self.done = {key(row) for row in self._read() if row["outcome"] == "completed"}

    def begin(self) -> None:
        """Make the folder, and remove an unfinished last row, so that the next one starts its own line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "settings.json", dict(self.settings))
        if self._path.exists():
            kept = self._path.read_bytes()
            with self._path.open("r+b") as file:
                file.truncate(kept.rfind(b"\n") + 1)

    def add(self, answer: Answer) -> None:
        """Append a row; it is on the disk when this returns."""
        values = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in asdict(answer).items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def frame(self) -> pd.DataFrame:
        """The last row of each question and method, with the columns of answer.Answer."""
        last = {key(row): row for row in self._read()}
        frame = pd.DataFrame(list(last.values()), columns=list(COLUMNS))
        numbers = [name for name, value in asdict(Answer("", "", "")).items() if isinstance(value, int | float) and name != "lossless"]
        return frame.astype(dict.fromkeys(numbers, "float64"))

    @property
    def _path(self) -> Path:
        return self.folder / "rows.jsonl"

    def _read(self) -> Iterator[dict[str, Any]]:
        lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n") if self._path.exists() else []
        for number, line in enumerate(lines[:-1], 1):  # after the last line break is nothing, or an unfinished row
            try:
                row = json.loads(line)
                if set(row) != set(COLUMNS):
                    raise ValueError("it has other columns")
            except ValueError as error:
                raise ValueError(f"{self._path}, line {number} is no row of this version: {error}; give another out") from None
            yield row


def key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["task"], row["id"], row["method"]
