"""The origin of a table, stored inside its Parquet file, so that a figure drawn from it can name its origin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from experiments.lib.manifest import manifest
from experiments.lib.results import plain, write_table
from experiments.lib.verb import VerbCall

KEY = b"abkt"
SCHEMA_VERSION = 1
TAKEN = ("verb", "command", "git", "config_sha256", "versions", "host")


def write_stamped(path: Path, table: pa.Table, run: VerbCall, **facts: Any) -> None:
    """Write a table of this run with its stamp. facts: further values for a reader, such as a limit to draw."""
    write_table_stamped(path, table, manifest(run), **facts)


def write_table_stamped(path: Path, table: pa.Table, made: Mapping[str, Any], **facts: Any) -> None:
    """Write a table with a stamp. made: the manifest of the run that the table comes from."""
    about = {name: made[name] for name in TAKEN if name in made}
    stamp = plain({"schema_version": SCHEMA_VERSION, **about, "facts": facts})
    metadata = {**(table.schema.metadata or {}), KEY: json.dumps(stamp, sort_keys=True).encode()}
    write_table(path, table.replace_schema_metadata(metadata))


def read_stamp(path: Path) -> dict[str, Any]:
    """The stamp of a table. Raises ValueError, one line, where the file is missing, damaged, or of another version."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    stamp = json.loads(metadata.get(KEY, b"{}"))
    if stamp.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {stamp.get('schema_version')}, this code reads {SCHEMA_VERSION}; make it again")
    return dict(stamp)
