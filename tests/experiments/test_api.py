"""ABKT in Python: the same results as the command line, the same errors, nothing printed, and `import abkt` stays light."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import abkt
from experiments.api import overrides, text
from experiments.cli import dispatch
from experiments.lib import compose as composer
from experiments.lib.paths import ROOT

SMALL = {"workload": "poisson", "workload__requests": 12, "workload__isl": 500, "workload__osl": 8}
WORDS = ["workload=poisson", "workload.requests=12", "workload.isl=500", "workload.osl=8"]


def test_importing_abkt_loads_nothing_of_the_command_line() -> None:
    code = "import sys, abkt; print(*(m for m in ('torch', 'hydra', 'pandas', 'simpy', 'numpy', 'experiments', 'sim') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "\n"


def test_the_names_are_there_and_no_others() -> None:
    assert set(abkt.__all__) <= set(dir(abkt))
    for name in abkt.__all__:
        assert getattr(abkt, name).__doc__
    with pytest.raises(AttributeError, match="module 'abkt' has no attribute 'simulat'"):
        abkt.simulat  # noqa: B018


def test_simulate_gives_what_the_command_writes_and_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = abkt.simulate(bitrate="int4", **SMALL)
    kept = abkt.simulate(
        bitrate="int4", **{"workload": "poisson", **{f"workload.{k}": v for k, v in (("requests", 12), ("isl", 500), ("osl", 8))}}
    )
    assert capfd.readouterr() == ("", "")
    assert dispatch(["simulate", "bitrate=int4", *WORDS, "progress=false", f"out={tmp_path}"]) == 0
    for mine in (run, kept):
        pd.testing.assert_frame_equal(mine.requests, pd.read_parquet(tmp_path / "requests.parquet"))
        pd.testing.assert_frame_equal(mine.transfers, pd.read_parquet(tmp_path / "transfers.parquet"))
        written = json.loads((tmp_path / "summary.json").read_text())
        assert {**mine.summary, "wall_s": 0} == {**written, "wall_s": 0}
    assert repr(run) == "Run(12 of 12 requests completed, 12 transfers)"


def test_results_are_kept_where_out_says(tmp_path: Path) -> None:
    abkt.simulate(out=tmp_path / "one", **SMALL)
    assert {"requests.parquet", "transfers.parquet", "summary.json", "manifest.json"} <= {
        path.name for path in (tmp_path / "one").iterdir()
    }
    rows = abkt.sweep(out=tmp_path / "many", plot=False, bitrate=["raw", "int4"], **SMALL)
    pd.testing.assert_frame_equal(rows, pd.read_parquet(tmp_path / "many" / "sweep.parquet"))
    again = abkt.sweep(out=tmp_path / "many", plot=False, bitrate=["raw", "int4"], **SMALL)
    assert again.wall_s.tolist() == rows.wall_s.tolist()  # not run again


def test_a_sweep_spans_the_grid_of_its_lists(capfd: pytest.CaptureFixture[str]) -> None:
    rows = abkt.sweep(bitrate=["raw", "int4"], seed=range(2), network__gbps=(1, 10.5), **SMALL)
    assert capfd.readouterr() == ("", "")
    assert len(rows) == 8
    assert rows[["bitrate", "seed", "network.gbps"]].drop_duplicates().shape == (8, 3)
    one = abkt.simulate(bitrate="int4", seed=1, network__gbps=10.5, **SMALL)
    mine = rows[(rows.bitrate == "int4") & (rows.seed == 1) & (rows["network.gbps"] == 10.5)].iloc[0]
    assert mine["ttft_s.mean"] == one.summary["ttft_s"]["mean"]


def test_compare_takes_runs_and_folders(tmp_path: Path) -> None:
    a, b = abkt.simulate(bitrate="raw", network="1g", **SMALL), abkt.simulate(bitrate="int4", network="1g", out=tmp_path / "b", **SMALL)
    found = abkt.compare(a, tmp_path / "b")
    wire = found.loc["wire"]
    assert wire.mean_a_s == pytest.approx(a.requests.wire_exposed_s.mean())
    assert wire.mean_b_s == pytest.approx(b.requests.wire_exposed_s.mean())
    assert wire.mean_change == pytest.approx(wire.mean_b_s / wire.mean_a_s - 1)
    assert wire.mean_low <= wire.mean_change <= wire.mean_high < 0


def test_searches_give_their_verdict_and_tables() -> None:
    short = {
        "requests": 40,
        "repeats": 2,
        "plot": False,
        "policies": ["raw"],
        "workload": "poisson",
        "workload__isl": 2000,
        "workload__osl": 20,
    }
    found = abkt.find_capacity(cluster="1p1d", tolerance=0.3, curve_rates=0, slo__ttft_s=0.5, **short)
    assert found.verdict["kind"] in ("use", "no_answer")
    assert found.table.loc["raw", "rate_per_s"] == found.runs[found.runs.meets].groupby("part").rate_per_s.max().mean()
    planned = abkt.plan(max_gpus=3, rate_per_s=1.0, **short)
    assert planned.table.split.tolist() == ["1P1D"]
    assert "Use raw on 1P1D" in repr(planned)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: abkt.simulate(bitrate="int5"), "bitrate=int5 is not known"),
        (lambda: abkt.simulate(bitrat="int4"), "no group or key bitrat (did you mean bitrate?)"),
        (lambda: abkt.simulate(workload__path="/nowhere/trace.jsonl"), "/nowhere/trace.jsonl"),
        (lambda: abkt.simulate(bitrate=["raw", "int4"]), "bitrate=[raw, int4] gives several choices; give one"),
        (lambda: abkt.simulate(seed=object()), "is a object; give a number, a string, None, a list or a dict"),
        (lambda: abkt.sweep(bitrate="raw"), "the sweep has no axis"),
        (lambda: abkt.sweep(bitrate=["raw", "int5"]), "bitrate=int5 is not known"),
        (lambda: abkt.compare("/nowhere", "/nowhere"), "/nowhere"),
        (lambda: abkt.replay(prefill=0), "prefill"),
        (lambda: abkt.plan(max_gpus=0), "max_gpus is 0"),
        (lambda: abkt.find_capacity(goal_share=2), "goal_share is 2"),
        (lambda: abkt.simulate(out="/proc/nowhere", **SMALL), "/proc/nowhere"),
    ],
)
def test_bad_input_is_a_value_error_of_one_line(call: Any, line: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is checked below
        call()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_point_that_fails_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="2 of 2 points failed, the first because of ValueError: "):
        abkt.sweep(bitrate=["raw", "int4"], workload__path=str(tmp_path / "missing.jsonl"))


def test_progress_prints_what_the_command_prints(capfd: pytest.CaptureFixture[str]) -> None:
    abkt.simulate(progress=True, **SMALL)
    assert "plan: 12 requests" in capfd.readouterr().out


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False)
    | st.text("ab1 ,:=[]{}'\"\\$.-_/null true", max_size=12)
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
)


@given(value=values)
def test_every_value_reaches_the_configuration_as_it_is(value: Any) -> None:
    override = composer.parse(f"key={text(value)}")
    assert override is not None, text(value)
    assert not override.is_sweep_override()
    assert plain(override.value()) == value


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return getattr(value, "text", value)


def test_keys_and_other_numbers() -> None:
    assert overrides({"workload__scaling__requests": np.int64(3), "+hardware@decode_hardware": "h20", "config_dir": "mine"}) == [
        "workload.scaling.requests=3",
        "+hardware@decode_hardware=h20",
        "--config-dir",
        "mine",
    ]
    assert (text(math.inf), text(Path("a b")), text(range(2))) == ("inf", '"a b"', "[0, 1]")


@pytest.mark.slow
def test_replay_runs_real_processes(tmp_path: Path) -> None:
    run = abkt.replay(bitrate="int4", workload__scaling__requests=3, workload__scaling__speedup=10.0, out=tmp_path / "run")
    assert (run.requests.compute == "real").all()
    assert run.summary["requests"]["initiated"] == 3


def test_a_script_needs_no_guard_for_one_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import abkt\nprint(len(abkt.sweep(seed=[0, 1], workload='poisson', workload__requests=3)))\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout == "2\n", done.stderr
