"""Outcomes in a file, one JSON line for each prompt and method, so that a run that was stopped can resume, also with more methods."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from experiments.lib.results import read_json, write_json
from experiments.quality.measure import QualityOutcome

FILE = "outcomes.jsonl"
COLUMNS = {column.name for column in fields(QualityOutcome)}


@dataclass(slots=True)
class SavedOutcomes:
    """outcomes.jsonl of a folder.

    Parameters
    ----------
    folder : an existing folder, or one that `begin` makes.
    settings : all that an outcome depends on, as text.
    done : outcomes by number of the prompt and name of the method. An unfinished last line is dropped.

    Raises
    ------
    ValueError
        One line, where the folder has outcomes of other settings, or a damaged line.
    """

    folder: Path
    settings: Mapping[str, str]
    done: dict[tuple[int, str], list[QualityOutcome]] = field(init=False)

    def __post_init__(self) -> None:
        stand = self.folder / "settings.json"
        if stand.exists():
            was = read_json(stand)
            other = sorted(key for key in {**was, **self.settings} if was.get(key) != self.settings.get(key))
            if other:
                raise ValueError(f"out={self.folder} has outcomes of another {', '.join(other)}; give another out, or the same to resume")
        self.done = dict(self._read())

    def begin(self) -> None:
        """Make the folder, and remove an unfinished last line, so that the next one starts its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "settings.json", dict(self.settings))
        if self._path.exists():
            kept = self._path.read_bytes()
            with self._path.open("r+b") as file:
                file.truncate(kept.rfind(b"\n") + 1)

    def add(self, number: int, method: str, outcomes: Sequence[QualityOutcome]) -> None:
        """Append the outcomes of a method on a prompt; they are on the disk when this returns."""
        self.done[number, method] = list(outcomes)
        row = {"prompt": number, "method": method, "outcomes": [asdict(outcome) for outcome in outcomes]}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    @property
    def _path(self) -> Path:
        return self.folder / FILE

    def _read(self) -> Iterator[tuple[tuple[int, str], list[QualityOutcome]]]:
        lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n") if self._path.exists() else []
        for number, line in enumerate(lines[:-1], 1):  # after the last line break is nothing, or an unfinished line
            try:
                read = json.loads(line)
                if any(set(row) != COLUMNS for row in read["outcomes"]):
                    raise ValueError("it has other columns")
                yield (int(read["prompt"]), str(read["method"])), [QualityOutcome(**row) for row in read["outcomes"]]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self._path}, line {number} is no line of this version: {error}; give another out") from None
