"""The tables that figures are drawn from: small Parquet files with a stamp of their origin (experiments.lib.stamps)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.lib.manifest import file_hash
from experiments.lib.results import read_records
from experiments.lib.stamps import read_stamp

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored table. rows: its rows. stamp: its origin; facts: further values of the stamp. sha256: of the file."""

    rows: pd.DataFrame
    stamp: Mapping[str, Any]
    sha256: str

    @property
    def facts(self) -> Mapping[str, Any]:
        return dict(self.stamp["facts"])


def load(folder: Path, name: str) -> Stored:
    """Read a stored table. Raises ValueError, one line, if it is missing, damaged, of another version, or has no rows."""
    path = folder / f"{name}.parquet"
    try:
        stamp = read_stamp(path)
        rows = read_records(path)
    except ValueError as error:
        raise ValueError(f"{error}; `make figure-data` makes it") from None
    if rows.empty:
        raise ValueError(f"{path} has no rows; `make figure-data` makes it")
    return Stored(rows, stamp, file_hash(path))


def completed(stored: Stored) -> pd.DataFrame:
    """The points of a sweep that did not fail."""
    return stored.rows[stored.rows.error == ""]
