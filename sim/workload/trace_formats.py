"""One reader for each published trace format: rows of a table, or lines of JSON, as (line, seconds, isl, osl, hash ids).

Sources: Mooncake (FAST'25); Azure LLM inference traces 2023 and 2024; BurstGPT (arXiv 2401.17644); token lengths of ShareGPT and arXiv
summaries, as Vidur and etalon publish them; LongBench v1 (arXiv 2308.14508), where the output length is the limit of its task
(config/dataset2maxlen.json, MIT).

Not modelled: the text of prompts and answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sim.workload.trace_files import Lines, Table, bad_line

Row = tuple[int, float, int, int, tuple[int, ...]]

# The most output tokens of each LongBench v1 task.
LONGBENCH_OSL = {"narrativeqa": 128, "qasper": 128, "multifieldqa_en": 64, "multifieldqa_zh": 64, "hotpotqa": 32, "2wikimqa": 32}
LONGBENCH_OSL |= {"musique": 32, "dureader": 128, "gov_report": 512, "qmsum": 512, "multi_news": 512, "vcsum": 512, "trec": 64}
LONGBENCH_OSL |= {"triviaqa": 32, "samsum": 128, "lsht": 64, "passage_count": 32, "passage_retrieval_en": 32, "passage_retrieval_zh": 32}
LONGBENCH_OSL |= {"lcc": 64, "repobench-p": 64}


@dataclass(frozen=True, slots=True)
class Format:
    """A trace format. names: columns, or keys of a JSON line, that identify it. timed: it has arrival times; otherwise seconds are 0."""

    name: str
    names: tuple[str, ...]
    timed: bool
    read: Callable[[Any, tuple[str, ...]], Iterator[Row]]
    kind: type[Table] | type[Lines] = Table

    def fits(self, trace: Table | Lines) -> bool:
        if not isinstance(trace, self.kind):
            return False
        return set(self.names) <= set(trace.columns if isinstance(trace, Table) else _keys(trace))


def _keys(lines: Lines) -> set[str]:
    try:
        first = json.loads(lines.first)
    except json.JSONDecodeError:
        return set()
    return set(first) if isinstance(first, dict) else set()


def _timed(seconds: Callable[[Any], float], hint: str) -> Callable[[Table, tuple[str, ...]], Iterator[Row]]:
    """A reader of tables with the columns time, prompt tokens and output tokens. seconds: parses a time. hint: its format in words."""

    def read(table: Table, names: tuple[str, ...]) -> Iterator[Row]:
        at, prompt, output = table.places(names)
        for line, row in table.rows:
            try:
                time_s = seconds(row[at])
                if not math.isfinite(time_s):
                    raise ValueError(time_s)
            except (ValueError, TypeError):
                raise bad_line(table.path, line, f"{names[0]} is {row[at]!r}; it must {hint}") from None
            yield line, time_s, _length(table.path, line, names[1], row[prompt]), _length(table.path, line, names[2], row[output]), ()

    return read


def _azure(table: Table, names: tuple[str, ...]) -> Iterator[Row]:
    """Times count from the first row. Whole seconds and fractions stay apart: a float cannot hold a date with seven decimals."""
    start: datetime | None = None

    def seconds(value: object) -> float:
        nonlocal start
        moment, fraction_s = (value, 0.0) if isinstance(value, datetime) else _moment(str(value))
        start = start or moment
        return (moment - start).total_seconds() + fraction_s

    return _timed(seconds, "look like 2023-11-16 18:15:46.6805900")(table, names)


def _lengths(table: Table, names: tuple[str, ...]) -> Iterator[Row]:
    prompt, output = table.places(names)
    for line, row in table.rows:
        yield line, 0.0, _length(table.path, line, names[0], row[prompt]), _length(table.path, line, names[1], row[output]), ()


def _mooncake(lines: Lines, names: tuple[str, ...]) -> Iterator[Row]:
    for line, row in _objects(lines, names):
        time_ms, ids = row[names[0]], row.get("hash_ids", [])
        if isinstance(time_ms, bool) or not isinstance(time_ms, int | float) or not abs(time_ms) < 1e15:
            raise bad_line(lines.path, line, f"{names[0]} is {time_ms!r}; it must be a number of milliseconds")
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise bad_line(lines.path, line, "hash_ids is not a list of integers")
        isl, osl = (_length(lines.path, line, name, row[name]) for name in names[1:])
        yield line, time_ms / 1000, isl, osl, tuple(ids)


def _longbench(lines: Lines, names: tuple[str, ...]) -> Iterator[Row]:
    """isl is the prompt's length as LongBench counts it: words, or characters of Chinese; isl_scale converts it to tokens."""
    for line, row in _objects(lines, names):
        task = row[names[1]]
        if task not in LONGBENCH_OSL:
            raise bad_line(lines.path, line, f"dataset is {task!r}; it must be one of {', '.join(LONGBENCH_OSL)}")
        yield line, 0.0, _length(lines.path, line, names[0], row[names[0]]), LONGBENCH_OSL[task], ()


def _objects(lines: Lines, names: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in lines.rows:
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise bad_line(lines.path, line, f"not JSON ({error.msg}, column {error.colno})") from None
        if not isinstance(row, dict):
            raise bad_line(lines.path, line, f"not a JSON object with {', '.join(names)}")
        for name in names:
            if name not in row:
                raise bad_line(lines.path, line, f"{name} is missing")
        yield line, row


def _moment(text: str) -> tuple[datetime, float]:
    """Whole seconds, and the fraction by itself: Azure writes seven digits, a datetime holds six."""
    whole, dot, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    if bool(dot) != bool(digits):
        raise ValueError(text)
    return datetime.fromisoformat(whole + rest[len(digits) :]), float(f"0.{digits or 0}")


def _length(path: Path, line: int, name: str, value: object) -> int:
    try:
        length = int(value) if isinstance(value, str) else value
    except ValueError:
        length = None
    if not isinstance(length, int) or isinstance(length, bool):
        raise bad_line(path, line, f"{name} is {value!r}; a length must be a whole number")
    if length < 1:
        raise bad_line(path, line, f"{name} is {length}; a length must be at least 1")
    return length


FORMATS = (
    Format("mooncake", ("timestamp", "input_length", "output_length"), True, _mooncake, Lines),
    Format("longbench", ("length", "dataset"), False, _longbench, Lines),
    Format("azure", ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), True, _azure),
    Format("burstgpt", ("Timestamp", "Request tokens", "Response tokens"), True, _timed(float, "be a number of seconds")),
    Format("records", ("arrival_s", "isl", "osl"), True, _timed(float, "be a number of seconds")),
    Format("lengths", ("num_prefill_tokens", "num_decode_tokens"), False, _lengths),
)
