"""`abkt simulate -m` through the launchers that are installed; each must give what two single runs give."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments.cli import dispatch
from experiments.lib.paths import ROOT

SMALL = ("workload=poisson", "workload.requests=5", "workload.isl=500", "workload.osl=8", "progress=false")
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.submitit_folder={tmp}/submitit", "hydra.launcher.timeout_min=5"],
}
PLUGIN = {"joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher"}


def installed(launcher: str) -> bool:
    plugins = importlib.util.find_spec("hydra_plugins")
    places = list(plugins.submodule_search_locations or []) if plugins else []
    return launcher == "basic" or any((Path(place) / PLUGIN[launcher]).is_dir() for place in places)


@pytest.mark.parametrize("launcher", [n if n == "basic" else pytest.param(n, marks=pytest.mark.slow) for n in LAUNCHERS])
def test_each_launcher_gives_the_same_results(launcher: str, tmp_path: Path) -> None:
    if not installed(launcher):
        pytest.skip(f"hydra-{launcher.partition('_')[0]}-launcher is not installed")
    special = [part.format(tmp=tmp_path) for part in LAUNCHERS[launcher]]
    arguments = ["simulate", "-m", "bitrate=raw,int4", *SMALL, *special, f"out={tmp_path / 'many'}"]
    home = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *arguments], cwd=tmp_path, env={**os.environ, **home}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for number, bitrate in enumerate(("raw", "int4")):
        assert dispatch(["simulate", f"bitrate={bitrate}", *SMALL, f"out={tmp_path / bitrate}"]) == 0
        one, many = (json.loads((p / "summary.json").read_text()) for p in (tmp_path / bitrate, tmp_path / "many" / str(number)))
        assert {k: v for k, v in one.items() if k != "wall_s"} == {k: v for k, v in many.items() if k != "wall_s"}


@pytest.mark.parametrize("launcher", [n if n == "basic" else pytest.param(n, marks=pytest.mark.slow) for n in LAUNCHERS])
def test_a_job_can_be_a_whole_grid(launcher: str, tmp_path: Path) -> None:
    """Two jobs of one launcher, each with a pool of its own and two points."""
    if not installed(launcher):
        pytest.skip(f"hydra-{launcher.partition('_')[0]}-launcher is not installed")
    special = [part.format(tmp=tmp_path) for part in LAUNCHERS[launcher]]
    arguments = [
        "sweep",
        "-m",
        "network=1g,25g",
        'grid=["bitrate=raw,int4"]',
        "workers=1",
        *SMALL[:-1],
        *special,
        f"out={tmp_path / 'many'}",
    ]
    home = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *arguments], cwd=tmp_path, env={**os.environ, **home}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for number in range(2):
        rows = pd.read_parquet(tmp_path / "many" / str(number) / "sweep.parquet")
        assert list(rows.bitrate) == ["raw", "int4"]
        assert (rows.error == "").all()


def test_a_launcher_that_is_not_installed_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["simulate", "-m", "bitrate=raw,int4", "hydra/launcher=nowhere"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "nowhere" in error
