"""What the measurement of the connector consists of: cells of (way, link, prompt), each one row of rows.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abkt.ranges import bound

OURS = ("raw", "int8", "int4", "embedded")
WAYS = ("local", *OURS, "nixl")
FEW = {5.0: 1, 20.0: 2}  # prompts on slow links, where one takes long


@dataclass(frozen=True, slots=True)
class MeasureConfig:
    """What is measured.

    model_folder, python : the model, and the interpreter that has vLLM.
    text : the file that prompts are taken from.
    links : Mbit/s; inf: not shaped.
    prompts : at most this many on a link.
    context, answer : tokens of a prompt, and of the text after it, whose likelihood is measured.
    deadline_s : of embedded.
    drop : also a link that becomes slow during the transfer.
    """

    model_folder: Path
    text: Path
    out: Path
    python: Path
    links: tuple[float, ...] = (math.inf, 1000.0, 100.0, 20.0, 5.0)
    prompts: int = 4
    context: int = 512
    answer: int = 64
    deadline_s: float = 1.0
    drop: bool = True

    def __post_init__(self) -> None:
        bound(self, "links", above=0, infinite=True)
        bound(self, "prompts", "context", "answer", least=1)
        bound(self, "deadline_s", least=0)


@dataclass(frozen=True, slots=True)
class MeasuredCell:
    """One measurement.

    link : Mbit/s, or two of them: the first until 0.3 s after the decode request, then the second.
    """

    way: str
    link: tuple[float, ...]
    prompt: int

    @property
    def key(self) -> str:
        return f"{self.way} {'>'.join(f'{rate:g}' for rate in self.link)} {self.prompt}"


def cells(config: MeasureConfig, ways: Sequence[str]) -> Iterator[MeasuredCell]:
    """The cells of some ways, those of a link together."""
    for link in config.links:
        for prompt in range(min(config.prompts, FEW.get(link, config.prompts))):
            for way in ways:
                if way != "local" or math.isinf(link):
                    yield MeasuredCell(way, (link,), prompt)
    if config.drop:
        for way in ways:
            if way in ("int8", "embedded"):
                yield from (MeasuredCell(way, (100.0, 5.0), prompt) for prompt in range(min(2, config.prompts)))


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of an earlier run by key; a line that was cut off, or a cell that failed, is dropped."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "error" not in row:
            found[row["key"]] = row
    return found


def token_ids(config: MeasureConfig) -> list[list[int]]:
    """The prompts, each with the text that goes on after it: pieces of the text that lie far apart."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(config.model_folder / "tokenizer.json")).encode(config.text.read_text()).ids
    size = config.context + config.answer
    if len(ids) < config.prompts * size:
        raise ValueError(f"{config.text} has {len(ids)} tokens; {config.prompts} prompts need {config.prompts * size}")
    apart = (len(ids) - size) // max(1, config.prompts - 1) if config.prompts > 1 else 0
    return [ids[index * apart : index * apart + size] for index in range(config.prompts)]
