"""Two runs of the same requests, joined."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from abkt.records import RequestRecord
from experiments.cli import dispatch
from experiments.lib.results import write_records
from experiments.study.comparison import compare


def record(request_id: int, wire_s: float, isl: int = 100) -> RequestRecord:
    """0.1 s of queue, 0.2 s of prefill, wire_s of wire, 1 s of decode with its first token after 0.1 s; nothing else."""
    made = RequestRecord(request_id, isl, 12, arrival_s=float(request_id), finish_s=request_id + 1.3 + wire_s)
    made.decode_token_s = request_id + 0.4 + wire_s
    made.expose(*(request_id + t for t in (0.1, 0.3, 0.3, 0.3 + wire_s, 0.3 + wire_s)))
    return made


def runs(tmp_path: Path, measured: list[RequestRecord], predicted: list[RequestRecord]) -> tuple[Path, Path]:
    write_records(tmp_path / "a", measured, [])
    write_records(tmp_path / "b", predicted, [])
    return tmp_path / "a", tmp_path / "b"


def test_errors_by_hand(tmp_path: Path) -> None:
    """Wire is 1 s and 3 s measured, 1.5 s and 3.5 s predicted; all else is equal, in another order."""
    folders = runs(tmp_path, [record(0, 1.0), record(1, 3.0)], [record(1, 3.5), record(0, 1.5)])
    result = compare(*folders)
    wire, ttft = result["stages"]["wire"], result["stages"]["ttft"]
    assert {k: wire["mean"][k] for k in ("measured_s", "predicted_s", "relative_error")} == pytest.approx(
        {"measured_s": 2.0, "predicted_s": 2.5, "relative_error": 0.25}
    )
    assert wire["p99"]["measured_s"] == pytest.approx(1.0 + 0.99 * 2.0)
    assert wire["mean_absolute_s"] == pytest.approx(0.5)
    assert wire["share_of_e2e"] == pytest.approx(0.5 / 3.3)
    assert ttft["mean"]["measured_s"] == pytest.approx(2.4)
    assert result["stages"]["prefill"]["mean"]["relative_error"] == pytest.approx(0.0)
    assert math.isnan(result["stages"]["encode"]["mean"]["relative_error"])  # nothing was measured to be relative to


def test_a_run_compared_with_itself_has_no_error(tmp_path: Path) -> None:
    folders = runs(tmp_path, [record(i, 0.1 * i) for i in range(5)], [record(i, 0.1 * i) for i in range(5)])
    for errors in compare(*folders)["stages"].values():
        assert errors["mean_absolute_s"] == 0
        assert errors["mean"]["relative_error"] in (0, pytest.approx(math.nan, nan_ok=True))


def test_only_what_completed_in_both_is_compared(tmp_path: Path) -> None:
    failed = replace(record(1, 9.0), outcome="failed")
    result = compare(*runs(tmp_path, [record(0, 1.0), failed, record(2, 1.0)], [record(0, 1.0), record(1, 1.0)]))
    assert result["requests"] == {"measured": 3, "predicted": 2, "compared": 1}
    assert result["stages"]["wire"]["mean"]["measured_s"] == pytest.approx(1.0)


def test_other_requests_under_the_same_ids_are_refused(tmp_path: Path) -> None:
    folders = runs(tmp_path, [record(0, 1.0), record(7, 1.0)], [record(0, 1.0), record(7, 1.0, isl=99)])
    with pytest.raises(ValueError, match=r"not of the same requests: request 7 has isl 100 in .*a, 99 in .*b"):
        compare(*folders)


def test_nothing_in_common_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no request in common"):
        compare(*runs(tmp_path, [record(0, 1.0)], [record(1, 1.0)]))
    with pytest.raises(ValueError, match="no request completed in both"):
        compare(*runs(tmp_path, [replace(record(0, 1.0), outcome="rejected")], [record(0, 1.0)]))


def test_the_verb_takes_two_folders_and_writes_to_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs(tmp_path, [record(0, 1.0)], [record(0, 1.5)])
    assert dispatch(["compare", str(a), str(b), f"out={tmp_path / 'out'}"]) == 0
    assert "wire" in capsys.readouterr().out
    stored = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert stored["stages"]["wire"]["mean"]["relative_error"] == pytest.approx(0.5)
    assert stored["stages"]["encode"]["mean"]["relative_error"] is None
    assert dispatch(["compare", f"b={b}", f"a={a}", f"out={tmp_path / 'named'}"]) == 0
    assert json.loads((tmp_path / "named" / "compare.json").read_text()) == stored


def test_folders_with_odd_names(tmp_path: Path) -> None:
    odd = tmp_path / 'a, "b" {c}'
    odd.mkdir()
    a, b = runs(odd, [record(0, 1.0)], [record(0, 1.5)])
    assert dispatch(["compare", str(a), str(b), f"out={tmp_path / 'out'}"]) == 0


def test_a_damaged_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = runs(tmp_path, [record(0, 1.0)], [record(0, 1.5)])
    (b / "requests.parquet").write_bytes(b"not parquet")
    assert dispatch(["compare", str(a), str(b), f"out={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_records_of_another_version_are_refused(tmp_path: Path) -> None:
    a, b = runs(tmp_path, [record(0, 1.0)], [record(0, 1.5)])
    (b / "summary.json").write_text('{"schema_version": 1}')
    with pytest.raises(ValueError, match=r"b has records of schema version 1; this code reads 3 \(queue_busy_s is gone.*: run it again"):
        compare(a, b)


def test_the_interval_is_of_the_pairs(tmp_path: Path) -> None:
    """Requests differ wildly, but each is predicted a tenth longer: the paired interval has no width."""
    a, b = runs(tmp_path, [record(i, 1.0 + i) for i in range(30)], [record(i, 1.1 * (1.0 + i)) for i in range(30)])
    mean = compare(a, b)["stages"]["wire"]["mean"]
    assert [mean[key] for key in ("relative_error", "low", "high")] == pytest.approx([0.1] * 3)
