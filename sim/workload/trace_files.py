"""A trace file as JSON lines or as a table, recognised by content: plain text, gzip, or Parquet.

A row keeps the number of its line in the file (in a Parquet file: the row's number, from 1), so that an error can name it.

Not modelled: other containers, such as zip or zstd.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"


@dataclass(frozen=True, slots=True)
class Table:
    """Columns, and (line, values) of each row. Reading a row of text may raise ValueError, with file and line."""

    path: Path
    columns: tuple[str, ...]
    rows: Iterator[tuple[int, Sequence[Any]]]

    def places(self, names: Sequence[str]) -> list[int]:
        for name in names:
            if name not in self.columns:
                raise bad_line(self.path, 1, f"there is no column {name}; the columns are {', '.join(self.columns)}")
        return [self.columns.index(name) for name in names]


@dataclass(frozen=True, slots=True)
class Lines:
    """JSON lines: (line, text) of each line that is not empty. first: the text of the first such line."""

    path: Path
    first: str
    rows: Iterator[tuple[int, str]]


def open_trace(path: Path) -> Table | Lines:
    """Open a trace file. Raises ValueError, one line, if it is missing, damaged, or neither text nor Parquet."""
    data = _bytes(path)
    if data[:4] == PARQUET:
        return _parquet(path, data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"trace {path} cannot be read: {error}") from None
    if text.lstrip()[:1] == "{":
        rows = ((line, content) for line, content in enumerate(text.splitlines(), start=1) if content.strip())
        return Lines(path, text.lstrip().partition("\n")[0], rows)
    return _csv(path, text)


def bad_line(path: Path, line: int, what: str) -> ValueError:
    return ValueError(f"trace {path}, line {line}: {what}")


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == GZIP else data
    except FileNotFoundError:
        raise ValueError(f"trace {path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"trace {path} cannot be read: {error}") from None


def _csv(path: Path, text: str) -> Table:
    reader = csv.reader(io.StringIO(text, newline=""))
    header = tuple(name.strip() for name in next(reader, ()))

    def rows() -> Iterator[tuple[int, Sequence[Any]]]:
        try:
            for row in reader:
                if row and len(row) != len(header):
                    raise bad_line(path, reader.line_num, f"{len(row)} values for {len(header)} columns")
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise bad_line(path, reader.line_num, f"not CSV ({error})") from None

    return Table(path, header, rows())


def _parquet(path: Path, data: bytes) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowException as error:
        raise ValueError(f"trace {path} cannot be read: {error}") from None
    columns = [column.to_pylist() for column in table.columns]
    return Table(path, tuple(table.column_names), enumerate(zip(*columns), start=1))
