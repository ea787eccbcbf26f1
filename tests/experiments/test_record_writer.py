"""Records that are written during a run are the same as those written at its end."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from abkt.records import SLO, SUMMARIZED, RequestRecord, TransferRecord, summarize, summarize_columns
from experiments.cli import dispatch
from experiments.lib import record_writer
from experiments.lib.record_writer import NAMES, RecordWriter, read_columns
from experiments.lib.results import read_records, write_records


def request(i: int, finish_s: float = 9.0, outcome: str = "completed") -> RequestRecord:
    return RequestRecord(i, 10 + i, 5, float(i), finish_s=finish_s, decode_token_s=finish_s - 1, outcome=outcome)


def test_the_files_are_the_same_as_from_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the run hands over: batches are cut by their size alone."""
    monkeypatch.setattr(record_writer, "BATCH", 4)
    requests, transfers = [request(i) for i in range(11)], [TransferRecord(i, "p", "d", i / 7) for i in range(9)]
    for name, cuts in (("at once", [0, 11]), ("in pieces", [0, 1, 2, 7, 7, 11])):
        with RecordWriter(tmp_path / name) as writer:
            for start, end in pairwise(cuts):
                writer.add(requests[start:end], transfers[start:end])
    write_records(tmp_path / "plain", requests, transfers)
    for name in NAMES:
        assert (tmp_path / "at once" / name).read_bytes() == (tmp_path / "in pieces" / name).read_bytes()
        assert read_records(tmp_path / "at once" / name).equals(read_records(tmp_path / "plain" / name))
    assert sorted(p.name for p in (tmp_path / "in pieces").iterdir()) == sorted(NAMES)


def test_a_run_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        with RecordWriter(folder) as writer:
            writer.add([request(0)] * 30_000, [])
            assert (folder / ".requests.parquet.part").is_file()
            raise RuntimeError("it broke")

    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "other.txt").write_text("mine")
    for name in ("new", "kept"):
        with pytest.raises(RuntimeError, match="it broke"):
            broken(tmp_path / name)
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["other.txt"]


def test_a_run_without_transfers_has_their_columns(tmp_path: Path) -> None:
    with RecordWriter(tmp_path) as writer:
        writer.add([request(0)], [])
    assert "wire_bytes" in pq.read_table(tmp_path / "transfers.parquet").column_names


def test_the_summary_of_columns_is_that_of_the_records(tmp_path: Path) -> None:
    records = [request(0), request(1, 7.5), request(2, float("nan"), "rejected"), request(3, float("nan"), "failed")]
    write_records(tmp_path, records, [])
    slo = SLO(6.0, 1.0)
    columns = read_columns(tmp_path / "requests.parquet")
    assert set(columns) == set(SUMMARIZED)
    summary = summarize_columns(columns, slo, 2.0)
    assert str(summary) == str(summarize(records, slo, 2.0))
    assert summary["requests"] == {"initiated": 4, "completed": 2, "rejected": 1, "failed": 1}


def test_draining_a_run_does_not_change_its_records(curves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a trace the records stay until the end."""
    monkeypatch.setattr(record_writer, "BATCH", 16)
    given = [f"curves={curves}", "workload=poisson", "workload.requests=100", "workload.rate_per_s=20", "progress=false"]
    for trace in ("true", "false"):
        assert dispatch(["simulate", *given, f"trace={trace}", f"out={tmp_path / trace}"]) == 0
    for name in NAMES:
        assert (tmp_path / "true" / name).read_bytes() == (tmp_path / "false" / name).read_bytes()
    assert pq.ParquetFile(tmp_path / "true" / NAMES[0]).num_row_groups == 7
