"""Writes requests.parquet and transfers.parquet while a run goes on, because a million requests would not fit in memory as objects.

All batches have the same size, regardless of when the run passes its records on. So the bytes of the files depend only on the records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from abkt.records import SUMMARIZED, RequestRecord, TransferRecord
from experiments.lib.results import arrow_column, numpy_column, record_table, writing
from sim.cluster import Simulation
from sim.interval import intervals

BATCH = 20_000  # records in a row group
NAMES = ("requests.parquet", "transfers.parquet")


class RecordWriter:
    """A context manager that writes the two files of a run into `folder`. If it ends with an error, it leaves no files.

    errors: node name -> relative errors by stage, for the columns of prediction intervals; None: no such columns.
    """

    def __init__(self, folder: Path, errors: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.folder, self.errors, self.made = folder, errors, False
        self.requests = _Part(RequestRecord, folder / f".{NAMES[0]}.part")
        self.transfers = _Part(TransferRecord, folder / f".{NAMES[1]}.part")

    def __enter__(self) -> RecordWriter:
        self.made = not self.folder.exists()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        parts = (self.requests, self.transfers)
        try:
            if kind is None:
                self._write(0)
                for part, name in zip(parts, NAMES):
                    with writing(self.folder / name):
                        part.close()
                for part, name in zip(parts, NAMES):
                    part.path.replace(self.folder / name)
        finally:
            for part in parts:
                part.drop()
            if self.made and self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def add(self, requests: Sequence[RequestRecord], transfers: Sequence[TransferRecord]) -> None:
        """Add records that will not change any more, in their order."""
        self.requests.waiting += requests
        self.transfers.waiting += transfers
        self._write(BATCH)

    def drain(self, simulation: Simulation) -> None:
        """Take the records that are final from a simulation."""
        self.add(*simulation.take())

    def _write(self, at_least: int) -> None:
        with writing(self.folder / NAMES[0]):
            self.requests.write(at_least, lambda records: intervals(records, self.errors) if self.errors else {})
        with writing(self.folder / NAMES[1]):
            self.transfers.write(at_least, lambda records: {})


class _Part:
    def __init__(self, kind: type[RequestRecord] | type[TransferRecord], path: Path) -> None:
        self.kind, self.path = kind, path
        self.waiting: list[Any] = []
        self.writer: pq.ParquetWriter | None = None

    def write(self, at_least: int, more: Any) -> None:
        """Write batches of BATCH records. at_least = 0: also write the rest, and an empty table if there were no records."""
        while len(self.waiting) >= max(1, at_least) or (at_least == 0 and self.writer is None):
            batch = self.waiting[:BATCH]
            del self.waiting[:BATCH]
            table = record_table(self.kind, batch, {})
            for name, values in more(batch).items():
                table = table.append_column(name, arrow_column(values, pa.float64()))
            if self.writer is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.writer = pq.ParquetWriter(self.path, table.schema)
            self.writer.write_table(table)

    def close(self) -> None:
        writer, self.writer = self.writer, None
        if writer is not None:
            writer.close()

    def drop(self) -> None:
        """Close and remove the file, if it is still there."""
        with suppress(OSError):  # of a full disk; it has been reported
            self.close()
        self.path.unlink(missing_ok=True)


def read_columns(path: Path, names: Sequence[str] = SUMMARIZED) -> dict[str, np.ndarray]:
    """Columns of one of the files."""
    table = pq.ParquetFile(path).read(columns=list(names))
    return {name: numpy_column(table[name]) for name in names}
