"""A trace file as JSON objects or as a table, recognised by content: plain text, gzip, or Parquet; JSON lines, or one JSON array.

A row keeps its number in the file: the line of a text, the entry of an array, or the row of a Parquet file, from 1, for errors to name.

Not modelled: other containers, such as zip or zstd.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abkt.ranges import short

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"


@dataclass(frozen=True, slots=True)
class Table:
    """Columns, and (number, values) of each row. place: what is numbered. Reading a row may raise ValueError, with file and line."""

    path: Path
    names: tuple[str, ...]
    rows: Iterator[tuple[int, Sequence[Any]]]
    place: str = "line"

    def bad(self, number: int, what: str) -> ValueError:
        return ValueError(f"trace {self.path}, {self.place} {number}: {what}")

    def columns(self, names: Sequence[str]) -> list[int]:
        for name in names:
            if name not in self.names:
                raise self.bad(1, f"there is no column {name}; the columns are {_listed(self.names)}")
        return [self.names.index(name) for name in names]


@dataclass(frozen=True, slots=True)
class Objects:
    """JSON objects: (number, object) of each. Reading one may raise ValueError, with file and line. names: keys of the first object."""

    path: Path
    names: tuple[str, ...]
    rows: Iterator[tuple[int, dict[str, Any]]]
    place: str = "line"

    def bad(self, number: int, what: str) -> ValueError:
        return ValueError(f"trace {self.path}, {self.place} {number}: {what}")


def open_trace(path: Path) -> Table | Objects:
    """Open a trace file. Raises ValueError, one line, if it is missing, damaged, or neither text nor Parquet."""
    data = _bytes(path)
    if data[:4] == PARQUET:
        return _parquet(path, data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"trace {path} cannot be read: {error}") from None
    match text.lstrip()[:1]:
        case "{":
            return _lines(path, text)
        case "[":
            return _array(path, text)
    return _csv(path, text)


def _listed(names: Sequence[str]) -> str:
    """Names of columns or keys, at most eight of them."""
    shown = [name if len(name) <= 40 else short(name) for name in names[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def listed(trace: Table | Objects) -> str:
    return _listed(trace.names)


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == GZIP else data
    except FileNotFoundError:
        raise ValueError(f"trace {path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"trace {path} cannot be read: {error}") from None


def _lines(path: Path, text: str) -> Objects:
    """JSON lines end at a line feed alone: a string inside may hold other separators, such as U+2028."""

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for line, content in enumerate(text.split("\n"), start=1):
            if content.strip():
                yield line, _object(path, line, content)

    return _objects(path, rows(), "line")


def _array(path: Path, text: str) -> Objects:
    try:
        entries = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        at = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"trace {path}{at}: not a JSON array ({getattr(error, 'msg', 'nested too deep')})") from None

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for number, entry in enumerate(entries, start=1):
            if not isinstance(entry, dict):
                raise ValueError(f"trace {path}, entry {number}: {short(entry)} is not a JSON object")
            yield number, entry

    return _objects(path, rows(), "entry")


def _objects(path: Path, rows: Iterator[tuple[int, dict[str, Any]]], place: str) -> Objects:
    first = next(rows, None)
    if first is None:
        raise ValueError(f"trace {path} is empty; it needs at least one request")

    def every() -> Iterator[tuple[int, dict[str, Any]]]:
        yield first
        yield from rows

    return Objects(path, tuple(map(str, first[1])), every(), place)


def _object(path: Path, line: int, content: str) -> dict[str, Any]:
    try:
        row = json.loads(content)
    except json.JSONDecodeError as error:
        raise ValueError(f"trace {path}, line {line}: not JSON ({error.msg}, column {error.colno})") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of too many digits
        raise ValueError(f"trace {path}, line {line}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError(f"trace {path}, line {line}: {short(row)} is not a JSON object")
    return row


def _csv(path: Path, text: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = tuple(name.strip() for name in next(reader, ()))
    except csv.Error as error:
        raise ValueError(f"trace {path}, line 1: not CSV ({error})") from None

    def rows() -> Iterator[tuple[int, Sequence[Any]]]:
        try:
            for row in reader:
                if row and len(row) != len(header):
                    raise ValueError(f"trace {path}, line {reader.line_num}: {len(row)} values for {len(header)} columns")
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"trace {path}, line {reader.line_num}: not CSV ({error})") from None

    return Table(path, header, rows())


def _parquet(path: Path, data: bytes) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"trace {path} cannot be read: {error}") from None
    columns = [column.to_pylist() for column in table.columns]
    return Table(path, tuple(table.column_names), enumerate(zip(*columns), start=1), "row")
