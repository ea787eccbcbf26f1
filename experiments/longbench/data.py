"""Sources of rows, prompts and answer lengths: a folder, or the hub and LongBench's repository. The data does not come with ABKT.

The files of a folder have their published names (`trec.jsonl`, `dataset2prompt.json`, `0shot.txt`), or these with the prefix `v1_` or
`v2_`; rows may be gzipped. The subfolders `data`, `config` and `prompts` are searched too.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from experiments.longbench.tasks import Task
from experiments.models.resolve import unreachable

HUB = {"v1": ("zai-org/LongBench", "data.zip"), "v2": ("zai-org/LongBench-v2", "data.json")}
REPOSITORY = "https://raw.githubusercontent.com/THUDM/LongBench/2e00731f8d0bff23dc4325161044d0ed8af94c1e"
PLACES = {
    "dataset2prompt.json": "LongBench/config/dataset2prompt.json",
    "dataset2maxlen.json": "LongBench/config/dataset2maxlen.json",
    "0shot.txt": "prompts/0shot.txt",
}
INSIDE = ("", "data", "config", "prompts", "LongBench/config")
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Example:
    """One question. id: name of its row. answers: the right answers. splits: further groups that it counts in, such as a difficulty."""

    id: str
    prompt: str
    answers: tuple[str, ...]
    classes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()


class Source(Protocol):
    """A source of questions. Its methods raise ValueError, one line, for data that is missing or cannot be read."""

    def has(self, task: Task) -> bool: ...

    def rows(self, task: Task) -> Iterator[dict[str, Any]]: ...

    def text(self, family: str, name: str) -> str:
        """A file of prompts or answer lengths of v1 or v2."""
        ...


@dataclass(frozen=True, slots=True)
class DatasetFolder:
    folder: Path

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise ValueError(f"data={self.folder} is no folder; give one with LongBench's files, or data=hub")

    def has(self, task: Task) -> bool:
        return self._rows_of(task) is not None

    def rows(self, task: Task) -> Iterator[dict[str, Any]]:
        path = self._rows_of(task)
        if path is None:
            raise ValueError(
                f"task {task.name} is not in {self.folder}: there is no {task.file}.jsonl or .json, plain or .gz; or use data=hub"
            )
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        yield from parse_rows(raw, path.name)

    def text(self, family: str, name: str) -> str:
        path = self._find(family, (name,))
        if path is None:
            raise ValueError(f"{name} of LongBench {family} is not in {self.folder}; put it there, or use data=hub")
        return path.read_text(encoding="utf-8")

    def _rows_of(self, task: Task) -> Path | None:
        return self._find(task.family, [f"{task.file}{ending}" for ending in (".jsonl", ".jsonl.gz", ".json", ".json.gz")])

    def _find(self, family: str, names: list[str] | tuple[str, ...]) -> Path | None:
        led = [f"{family}_{name}" for name in names]
        places = (self.folder / inside / name for inside in INSIDE for name in (*led, *names))
        return next((place for place in places if place.is_file()), None)


@dataclass(frozen=True, slots=True)
class Hub:
    """LongBench as published. fetch: (data set, file) on the hub -> local path. read: path in the repository -> text."""

    fetch: Callable[[str, str], Path] = field(default_factory=lambda: _from_hub)
    read: Callable[[str], str] = field(default_factory=lambda: _from_repository)

    def has(self, task: Task) -> bool:
        return task.family in HUB

    def rows(self, task: Task) -> Iterator[dict[str, Any]]:
        if not self.has(task):
            raise ValueError(f"task {task.name} is not on the hub; give its folder with data=DIR")
        path = self.fetch(*HUB[task.family])
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                name = next((name for name in archive.namelist() if name.endswith(f"/{task.file}.jsonl")), None)
                if name is None:
                    raise ValueError(f"task {task.name} is not in {path.name} of the hub")
                yield from parse_rows(archive.read(name), name)
        else:
            yield from parse_rows(path.read_bytes(), path.name)

    def text(self, family: str, name: str) -> str:
        return self.read(PLACES[name])


def parse_rows(raw: bytes, name: str) -> Iterator[dict[str, Any]]:
    """The rows of JSON lines or of one JSON list. Raises ValueError with the line."""
    if raw.lstrip()[:1] == b"[":
        try:
            yield from json.loads(raw)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} is no list of rows: {error}") from None
        return
    for number, line in enumerate(io.BytesIO(raw), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{name}, line {number}: no JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{name}, line {number}: a row is an object")
            yield row


def _from_hub(repository: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset"))
    except unreachable() as error:
        raise ValueError(f"the hub cannot be reached for {repository}: {str(error).splitlines()[0]}; give data=DIR") from None


def _from_repository(path: str) -> str:
    from urllib.request import urlopen

    try:
        with urlopen(f"{REPOSITORY}/{path}", timeout=TIMEOUT_S) as answer:
            return answer.read().decode()
    except OSError as error:
        raise ValueError(f"LongBench's repository cannot be reached for {path}: {error}; give data=DIR") from None
