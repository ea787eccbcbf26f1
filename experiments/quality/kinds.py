"""Kinds of prompts for any model with a tokenizer: passages of texts that the user gives, recall of numbered lines, and needles in a text.

The project ships none of these texts. A text may be a file or a folder of .txt, .md, .py or .jsonl files, each also as .gz. Of a .jsonl
file the fields `context` and `text` of each row are read.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.models.tokenizer import bos_ids, needed_tokenizer, text_ids
from experiments.quality.lowbit import lines
from experiments.quality.samples import AFTER, QualitySample, text

ENDINGS = (".txt", ".md", ".py", ".jsonl")
FIELDS = ("context", "text")
MOST_CHARACTERS = 300_000  # read of each file
MOST_FILES = 60
RETRIEVAL = ("recall", "needles")
NEEDLES = 4
ASKS = 8  # numbered lines that a recall prompt asks for


def kinds_of(
    count: int, tokens: int, seed: int, passages: Mapping[str, Path], retrieval: Sequence[str], model_folder: Path
) -> Iterator[QualitySample]:
    """`count` prompts of each kind, one of each kind after another, so that a run that is stopped has as many of each.

    Parameters
    ----------
    passages : name of a kind -> its texts.
    retrieval : of RETRIEVAL; needles lie in the first of the passages.

    Raises
    ------
    ValueError : one line, for a kind that is unknown, texts that cannot be read or are too short, or a model without a tokenizer.
    """
    unknown = sorted(set(retrieval) - set(RETRIEVAL))
    if unknown:
        raise ValueError(f"retrieval={unknown[0]} is unknown; there are {' and '.join(RETRIEVAL)}")
    if "needles" in retrieval and not passages:
        raise ValueError("needles need a text to lie in; give one with passages, such as +passages.books=FOLDER")
    tokenizer = needed_tokenizer(model_folder)
    before = bos_ids(tokenizer)
    ids = {kind: ids_of(kind, place, tokenizer) for kind, place in passages.items()}
    for i in range(count):
        for number, (kind, of) in enumerate(ids.items()):
            try:
                yield replace(text(np.random.default_rng((seed, 3 + number, i)), of, tokens, AFTER, before), kind=kind)
            except ValueError as error:
                raise ValueError(f"passages.{kind}: {error}") from None
        if "recall" in retrieval:
            yield replace(lines(tokenizer, np.random.default_rng((seed, 1, i)), tokens, ASKS), kind="recall")
        if "needles" in retrieval:
            yield needles(tokenizer, np.random.default_rng((seed, 2, i)), next(iter(ids.values())), tokens, before)


def ids_of(kind: str, place: Path, tokenizer: Any) -> np.ndarray:
    """Token ids of a file or of a folder's files. Raises ValueError, one line, where there are none."""
    paths = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file() and _ending(p) in ENDINGS)[:MOST_FILES]
    if not paths:
        raise ValueError(f"passages.{kind}={place}: there is no file of {', '.join(ENDINGS)}")
    found = [text_ids(tokenizer, read) for path in paths if (read := _read(kind, path)[:MOST_CHARACTERS].strip())]
    if not found:
        raise ValueError(f"passages.{kind}={place}: its files are empty")
    return np.concatenate(found)


def needles(tokenizer: Any, rng: np.random.Generator, ids: np.ndarray, tokens: int, before: Sequence[int]) -> QualitySample:
    """A passage with NEEDLES sentences that name a city's number, and questions for each. The digits are the answers."""
    cities = rng.permutation(["Paris", "Tokyo", "Cairo", "Lima", "Oslo", "Rome", "Delhi", "Quito"])[:NEEDLES].tolist()
    values = rng.integers(10_000, 100_000, NEEDLES).tolist()
    told = [
        tokenizer.encode(f"\nThe secret number of {c} is {v}.\n", add_special_tokens=False) for c, v in zip(cities, values, strict=True)
    ]
    hay = tokens - sum(map(len, told)) - len(before)
    if hay < NEEDLES or len(ids) <= hay:
        raise ValueError(f"needles need a text of more than {hay} tokens and a prompt of more than {tokens - hay}; there are {len(ids)}")
    start = int(rng.integers(0, len(ids) - hay))
    cuts = sorted(rng.choice(np.arange(1, hay), NEEDLES, replace=False).tolist())
    parts = np.split(ids[start : start + hay], cuts)
    prompt = [*before, *parts[0].tolist()]
    for needle, part in zip(told, parts[1:], strict=True):
        prompt += [*needle, *part.tolist()]
    continuation: list[int] = tokenizer.encode("\n", add_special_tokens=False)
    answers = [False] * len(continuation)
    for i in rng.permutation(NEEDLES).tolist():
        for said in (f"The secret number of {cities[i]} is ", f"{values[i]}", ".\n"):
            coded = tokenizer.encode(said, add_special_tokens=False)
            continuation += coded
            answers += [said.isdigit()] * len(coded)
    return QualitySample("needles", tuple(prompt), tuple(continuation), tuple(answers), (-1,) * len(continuation))


def _ending(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _read(kind: str, path: Path) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        read = raw.decode("utf-8", errors="replace")
        if _ending(path) != ".jsonl":
            return read
        rows = [json.loads(line) for line in read.split("\n") if line.strip()]
        return "\n".join(str(row[field]) for row in rows for field in FIELDS if isinstance(row, dict) and field in row)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"passages.{kind}: {path} cannot be read: {error}") from None
