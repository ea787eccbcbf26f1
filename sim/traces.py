"""Published traces as requests: Mooncake's JSONL and Azure's LLM CSV, plain or gzipped.

A row that is not what it should be stops the reading, with its file and line: a skipped row would be a different trace.

Sources: Mooncake (FAST'25) conversation and tool traces; Azure LLM inference traces 2023 and 2024.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median

from sim.workload import Request

Row = tuple[int, float, int, int, tuple[int, ...]]  # line, seconds, isl, osl, hash ids
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOONCAKE = ("timestamp", "input_length", "output_length")


def read_trace(path: str | Path, format: str = "auto", seed: int = 0) -> list[Request]:
    """Requests of a trace; time counts from its first row. format: auto (by content), mooncake or azure.

    Mooncake's timestamps come in steps (3 s in the published files), so many arrivals share one: they are spread at random within
    their step, by `seed`, and keep their order. Raises ValueError, with file and line, for whatever is not a trace in order of time.
    """
    path = Path(path)
    text = _text(path)
    if format == "auto":
        format = "mooncake" if text.lstrip()[:1] == "{" else "azure"
    if format not in _READERS:
        raise ValueError(f"trace format {format!r} is not one of auto, {', '.join(_READERS)}")
    rows = list(_READERS[format](path, text))
    if not rows:
        raise ValueError(f"trace {path} is empty; it needs at least one request")
    for (_, before_s, *_), (line, now_s, *_) in pairwise(rows):
        if now_s < before_s:
            raise _error(path, line, "its time is before that of the line above; a trace must be in order of time")
    times_s = [row[1] - rows[0][1] for row in rows]
    if format == "mooncake":
        times_s = spread(times_s, seed)
    return [Request(i, time_s, isl, osl, ids) for i, (time_s, (_, _, isl, osl, ids)) in enumerate(zip(times_s, rows))]


def spread(times_s: list[float], seed: int) -> list[float]:
    """Times that come in steps, spread uniformly within them and sorted; times that are all different stay as they are.

    A step reaches to the next one, but no further than the usual (median) gap, so a pause stays a pause.
    """
    starts = sorted(set(times_s))
    if len(starts) == len(times_s) or len(starts) == 1:
        return times_s
    gaps = [after - before for before, after in pairwise(starts)]
    usual_s = median(gaps)
    width_s = {start: min(gap, usual_s) for start, gap in zip(starts, [*gaps, usual_s])}
    random = Random(seed)
    return sorted(time_s + width_s[time_s] * random.random() for time_s in times_s)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"trace {path} does not exist") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"trace {path} cannot be read: {error}") from None


def _mooncake(path: Path, text: str) -> Iterator[Row]:
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except json.JSONDecodeError as error:
            raise _error(path, line, f"not JSON ({error.msg}, column {error.colno})") from None
        if not isinstance(row, dict):
            raise _error(path, line, "not a JSON object with timestamp, input_length and output_length")
        for name in MOONCAKE:
            if name not in row:
                raise _error(path, line, f"{name} is missing")
        time_ms, ids = row["timestamp"], row.get("hash_ids", [])
        if isinstance(time_ms, bool) or not isinstance(time_ms, int | float) or not abs(time_ms) < 1e15:
            raise _error(path, line, f"timestamp is {time_ms!r}; it must be a number of milliseconds")
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise _error(path, line, "hash_ids is not a list of integers")
        isl, osl = (_length(path, line, name, row[name]) for name in MOONCAKE[1:])
        yield line, time_ms / 1000, isl, osl, tuple(ids)


def _azure(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, None)
    if header is None:
        return
    for name in AZURE:
        if name not in header:
            raise _error(path, 1, f"there is no column {name}; the columns are {', '.join(header)}")
    at, context, generated = (header.index(name) for name in AZURE)
    first: datetime | None = None
    try:
        for row in reader:
            line = reader.line_num
            if not row:
                continue
            if len(row) != len(header):
                raise _error(path, line, f"{len(row)} values for {len(header)} columns")
            try:
                moment, fraction_s = _moment(row[at])
                first = first or moment
                time_s = (moment - first).total_seconds() + fraction_s
            except (ValueError, TypeError):
                raise _error(path, line, f"TIMESTAMP is {row[at]!r}; it must look like 2023-11-16 18:15:46.6805900") from None
            yield line, time_s, _length(path, line, AZURE[1], row[context]), _length(path, line, AZURE[2], row[generated]), ()
    except csv.Error as error:
        raise _error(path, reader.line_num, f"not CSV ({error})") from None


def _moment(text: str) -> tuple[datetime, float]:
    """Whole seconds, and the fraction on its own: Azure writes seven digits, a datetime holds six."""
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
        raise _error(path, line, f"{name} is {value!r}; a length must be a whole number")
    if length < 1:
        raise _error(path, line, f"{name} is {length}; a length must be at least 1")
    return length


def _error(path: Path, line: int, what: str) -> ValueError:
    return ValueError(f"trace {path}, line {line}: {what}")


_READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {"mooncake": _mooncake, "azure": _azure}
