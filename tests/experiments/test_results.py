"""Result files are complete or absent, and have the columns of the records."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abkt.records import DERIVED, RequestRecord, TransferRecord
from experiments.lib.results import merge_records, read_json, read_records, write_json, write_records, write_table


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    records = [RequestRecord(i, 10, 5, 0.5 * i, decode_token_s=1.0 + i, finish_s=2.0 + i, outcome="completed") for i in range(3)]
    transfers = [TransferRecord(2, "p", "d", 0.5, 0.75, mode="stream", wire_bytes=123)]
    write_records(tmp_path, records, transfers, world="real")
    back = read_records(tmp_path / "requests.parquet")
    assert list(back.columns) == [*(f.name for f in fields(RequestRecord)), *DERIVED, "world"]
    assert list(back.request_id) == [0, 1, 2]
    assert list(back.ttft_s) == [1.0, 1.5, 2.0]
    assert all(map(math.isnan, back.rate))
    sent = read_records(tmp_path / "transfers.parquet").iloc[0]
    assert (sent.wire_bytes, sent["mode"], sent.world) == (123, "stream", "real")


def test_a_run_without_transfers_has_the_same_columns(tmp_path: Path) -> None:
    write_records(tmp_path / "none", [], [])
    write_records(tmp_path / "some", [RequestRecord(0, 1, 1, 0.0)], [TransferRecord(0, "p", "d", 0.0)])
    for name in ("requests.parquet", "transfers.parquet"):
        assert pq.read_schema(tmp_path / "none" / name).equals(pq.read_schema(tmp_path / "some" / name))


def test_merged_records_have_the_labels_of_their_run(tmp_path: Path) -> None:
    for run in ("one", "two"):
        write_records(tmp_path / run, [RequestRecord(0, 1, 1, 0.0)], [])
    merge_records({tmp_path / run: {"policy": run} for run in ("one", "two")}, tmp_path)
    assert list(read_records(tmp_path / "requests.parquet").policy) == ["one", "two"]
    assert len(read_records(tmp_path / "transfers.parquet")) == 0


def test_json_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "summary.json"
    write_json(path, {"nan": math.nan, "inf": math.inf, "nest": [(1, 2.5)], "path": Path("a/b")})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"nan": None, "inf": "inf", "nest": [[1, 2.5]], "path": "a/b"}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "requests.parquet"
    write_table(path, pa.table({"x": [1]}))

    def break_off(table: pa.Table, part: Path) -> None:
        part.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", break_off)
    with pytest.raises(KeyboardInterrupt):
        write_table(path, pa.table({"x": [2]}))
    assert list(pq.read_table(path)["x"]) == [pa.scalar(1)]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [None, "{", "\udcff"])
def test_json_that_cannot_be_read_is_one_line(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"x\.json") as raised:
        read_json(path)
    assert "\n" not in str(raised.value)
