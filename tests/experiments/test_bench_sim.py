"""The bench of the simulator: its files and its measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.bench import dynamo_peer, simulator
from experiments.bench.simulator import SimulatorBenchArguments, child, measure
from experiments.cli import dispatch
from experiments.lib.errors import RunError


def made_up(what: str, requests: int, half: int, variation: float = 0.0, **more: object) -> dict[str, float]:
    """A machine that does 5,000 requests a second (half of it if lengths vary), and takes 100 MiB and a KiB a request."""
    rate = {"bare": 80_000.0, "speed": 2_500.0 if variation else 5_000.0, "files": 1_000.0, "imports": 0.0}[what]
    return {"requests_per_cpu_s": rate, "cpu_s": 0.25 if what == "imports" else 1.0, "peak_mib": 100 + requests / 1024}


def test_rows_have_their_yardsticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(simulator, "child", made_up)
    assert dispatch(["bench", "sim", f"out={tmp_path}"]) == 0
    written = json.loads((tmp_path / "sim.json").read_text())
    rows = {row["name"]: (row["value"], row["unit"], row["yardstick"]) for row in written["rows"]}
    assert rows == {
        "requests_per_cpu_s_8_nodes": (5_000.0, "requests/CPU-s", 80_000.0),
        "requests_per_cpu_s_8_nodes_varied": (2_500.0, "requests/CPU-s", 80_000.0),
        "startup_s": (1.0, "CPU-s", 0.25),
        "peak_mib_10k": (100 + 10_000 / 1024, "MiB", 100 + 1 / 1024),
        "requests_per_cpu_s_1024_nodes": (1_000.0, "requests/CPU-s", 80_000.0),
        "peak_mib_1m": (100 + 1_000_000 / 1024, "MiB", 100 + 1 / 1024),
    }
    assert "868/227" in written["facts"]["run"]
    assert "requests_per_cpu_s_8_nodes" in capsys.readouterr().out


def test_a_shorter_run_is_labelled_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulator, "child", made_up)
    names = [row.name for row in measure(SimulatorBenchArguments(requests=5_000, nodes=64))]
    assert names[-2:] == ["requests_per_cpu_s_64_nodes", "peak_mib_5000"]


def test_a_measurement_gives_plausible_figures() -> None:
    found = child("speed", 40, 1, 0.5)
    assert found["requests_per_cpu_s"] > 0
    assert 40 / found["requests_per_cpu_s"] < found["cpu_s"]  # the run is a part of the process's time
    assert found["peak_mib"] > child("imports", 1, 1)["peak_mib"] > 20


def test_bad_input_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["bench"]) == 2
    assert "kernels, transfer or sim" in capsys.readouterr().err
    assert dispatch(["bench", "sim", "requests=many"]) == 2
    assert dispatch(["bench", "sim", "nodes=1"]) == 2
    with pytest.raises(RunError, match="measurement speed of 0 requests broke: ValueError"):
        child("speed", 0, 1)


def test_rows_beside_the_mocker_are_ratios_of_medians() -> None:
    ours = iter([{"requests_per_cpu_s": rate, "cpu_s": 2.0} for rate in (900.0, 1_000.0, 5_000.0)])
    theirs = {"round_robin": {"requests_per_cpu_s": 500.0, "cpu_s": 1.0}, "kv_router": {"requests_per_cpu_s": 250.0, "cpu_s": 9.0}}
    rows = dynamo_peer.rows(lambda: next(ours), theirs.__getitem__, 100, 3, lambda: None)
    assert [(row.name, row.value, row.yardstick) for row in rows] == [
        ("requests_per_cpu_s_over_dynamo", 2.0, 1.0),
        ("requests_per_cpu_s_over_dynamo_kv_router", 4.0, 1.0),
        ("requests_per_cpu_s_beside_dynamo", 1_000.0, 500.0),
        ("requests_per_process_cpu_s_beside_dynamo", 50.0, 100.0),
    ]


def test_a_missing_mocker_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ABKT_DYNAMO", "/bin/false")
    assert dispatch(["bench", "sim", "peer=dynamo", f"out={tmp_path}/out"]) == 2
    assert "ABKT_DYNAMO=/bin/false is no Python that has ai-dynamo-runtime" in capsys.readouterr().err
    monkeypatch.setenv("ABKT_DYNAMO", "")
    monkeypatch.setattr(dynamo_peer, "find_spec", lambda name: None)
    assert dispatch(["bench", "sim", "peer=dynamo", f"out={tmp_path}/out"]) == 2
    assert "pip install 'abkt[dynamo]'" in capsys.readouterr().err
    assert dispatch(["bench", "sim", "peer=vidur", f"out={tmp_path}/out"]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_mocker_completes_every_request() -> None:
    try:
        executable = dynamo_peer.python()
    except ValueError:
        pytest.skip("ai-dynamo-runtime is not installed")
    assert dynamo_peer.version().startswith("1.6")
    assert dynamo_peer.mocker(executable, 50, 2, 10.0, 868, 227, "round_robin")["requests_per_cpu_s"] > 0
