"""Every pool gives the same rows, resumes, and records a point that fails; a chain's next task depends on what the last one gave."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from experiments.lib.paths import ROOT
from experiments.sweeps.chains import Chain, Task, run_chains
from experiments.sweeps.pools import PoolSpec, open_pool
from tests.experiments.refused import refused

SMALL = ("workload=poisson", "workload.requests=5", "workload.isl=500", "workload.osl=8")
OPTIONS = {"ray": "pool_options={{_temp_dir: {short}}}", "submitit": "pool_options={{cluster: local, timeout_min: 5}}"}
TIMES = ["wall_s", "cpu_s"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIONS)
def test_every_pool_gives_the_rows_of_one_process_and_resumes(kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """At first a trace is missing; then a sweep of half the points is continued, and what was done before is not done again."""
    if importlib.util.find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    short = tmp_path_factory.mktemp("r")  # Ray's socket names must stay below 108 characters
    options = [OPTIONS[kind].format(short=short)]
    trace = tmp_path / "trace.jsonl"
    lines = [json.dumps({"timestamp": 100 * i, "input_length": 500, "output_length": 8}) for i in range(4)]

    def run(pool: str, seeds: str, *more: str) -> tuple[int, str, pd.DataFrame]:
        out = tmp_path / pool
        command = ["sweep", f"workload.path={trace}", "bitrate=raw,int4", f"seed={seeds}", f"pool={pool}", "workers=2", *more, f"out={out}"]
        home = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "experiments.cli", *command], cwd=tmp_path, env={**os.environ, **home}, capture_output=True, text=True
        )
        return done.returncode, done.stdout + done.stderr, pd.read_parquet(out / "sweep.parquet")

    code, said, rows = run(kind, "0,1", *options)
    assert code == 1, said
    assert rows.error.str.contains("trace.jsonl").all()
    assert "4 of 4 points failed" in said
    trace.write_text("\n".join(lines))
    code, said, rows = run(kind, "range(0,1)", *options)
    assert code == 0, said
    assert "done before" not in said
    code, said, rows = run(kind, "0,1", *options)
    assert code == 0, said
    assert "2 of them done before" in said
    alone = run("serial", "0,1")[2]
    pd.testing.assert_frame_equal(rows.drop(columns=TIMES), alone.drop(columns=TIMES))
    assert not (tmp_path / kind / "jobs").exists()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["pool=cloud"], "pool=cloud is not known; it is one of processes, serial, ray, submitit"),
        (["workers=0"], "workers is 0"),
        (["pool_options={address: auto}"], "pool=processes takes no pool_options"),
    ],
)
def test_a_wrong_pool_is_one_line(arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert part in refused(["sweep", *SMALL, "seed=0,1", *arguments, "out=results"], tmp_path, capsys)


@pytest.mark.parametrize(("kind", "extra"), [("ray", "ray"), ("submitit", "sweep")])
def test_a_package_that_is_missing_is_named_with_its_extra(kind: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"pool={kind} needs the package {kind}: pip install .*\[{extra}\]"):
        PoolSpec(kind)


def test_a_job_of_submitit_gets_several_points() -> None:
    assert PoolSpec("submitit", 2).piece(80) == 10
    assert PoolSpec("submitit", 100).piece(80) == 1
    assert PoolSpec("processes", 2).piece(80) == 1


def half(value: int) -> float:
    if value == 13:
        raise ZeroDivisionError("13 is unlucky")
    return value / 2


def halving(value: int) -> Chain[list[float]]:
    """Halve until the result is odd or broken."""
    found: list[float] = []
    try:
        while value % 2 == 0:
            found.append((yield Task(half, {"value": value})))
            value = int(found[-1])
        yield Task(half, {"value": value})
    except ZeroDivisionError:
        found.append(-1.0)
    return found


@pytest.mark.parametrize("pool", [PoolSpec("serial"), pytest.param(PoolSpec("processes", 2), marks=pytest.mark.slow)])
def test_a_chain_gets_what_its_last_task_gave_and_what_it_raised(pool: PoolSpec, tmp_path: Path) -> None:
    done: dict[str, list[float]] = {}
    steps: list[int] = []
    with open_pool(pool, 3, tmp_path) as opened:
        chains = {"eight": halving(8), "unlucky": halving(26), "odd": halving(3)}
        run_chains(chains, opened, done.__setitem__, lambda: steps.append(1))
    assert done == {"eight": [4.0, 2.0, 1.0], "unlucky": [13.0, -1.0], "odd": []}
    assert len(steps) == 4 + 2 + 1


def test_an_error_of_a_chain_ends_all(tmp_path: Path) -> None:
    def fails() -> Chain[None]:
        yield Task(half, {"value": 13})

    done: Callable[[str, None], None] = lambda name, result: None  # noqa: E731
    with pytest.raises(ZeroDivisionError), open_pool(PoolSpec("serial"), 1, tmp_path) as pool:
        run_chains({"a": fails()}, pool, done)
