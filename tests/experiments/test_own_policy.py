"""A policy of the user's own, a class in the current folder and a YAML of --config-dir, in every kind of process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments.cli import dispatch
from experiments.lib.compose import compose
from experiments.lib.paths import CONFIG_DIR, ROOT, split_config_dirs
from experiments.lib.results import read_records
from tests.experiments.test_replay import TINY

SMALL = ("workload=poisson", "workload.requests=6", "workload.isl=500", "workload.osl=8", "network.gbps=1")
YAML = "# Half of the time that is left until the deadline.\n_target_: my_policy.HalfTheTime\nbytes_per_s: ${bytes_per_s:${network.gbps}}\n"


def example() -> str:
    """The policy of the README."""
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S) if "class HalfTheTime" in block
    )
    return code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the user works: my_policy.py, and own/bitrate/half_the_time.yaml."""
    (tmp_path / "my_policy.py").write_text(example())
    (tmp_path / "own" / "bitrate").mkdir(parents=True)
    (tmp_path / "own" / "bitrate" / "half_the_time.yaml").write_text(YAML)
    return tmp_path


def abkt(folder: Path, *arguments: str) -> str:
    """The console script: unlike `python -m`, it does not put the current folder on Python's path."""
    script = folder / "bin" / "abkt"
    script.parent.mkdir(exist_ok=True)
    script.write_text("from abkt.console import main\nif __name__ == '__main__':\n    main()\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_simulate_takes_an_own_policy(folder: Path) -> None:
    said = abkt(folder, "simulate", CONFIG_DIR, "own", "bitrate=half_the_time", *SMALL, "progress=false", "out=one")
    assert "bitrate half_the_time" in said
    summary = json.loads((folder / "one" / "summary.json").read_text())
    assert summary["requests"]["completed"] == 6
    command = json.loads((folder / "one" / "manifest.json").read_text())["command"]
    assert f"{CONFIG_DIR} " in command
    assert "searchpath" not in command


def test_multirun_and_help_take_an_own_policy(folder: Path) -> None:
    abkt(folder, "simulate", "-m", f"{CONFIG_DIR}=own", "bitrate=half_the_time,raw", *SMALL, "progress=false", "out=many")
    found = [json.loads((folder / "many" / str(i) / "summary.json").read_text())["bitrate"] for i in range(2)]
    assert found == ["half_the_time", "raw"]
    line = "  bitrate=half_the_time        Half of the time that is left until the deadline\n"
    assert " ".join(line.split()) in " ".join(abkt(folder, "simulate", "--help", CONFIG_DIR, "own").split())


def test_a_sweep_takes_an_own_policy_and_runs_again_when_it_changes(folder: Path) -> None:
    grid = ("sweep", CONFIG_DIR, "own", "bitrate=raw,half_the_time", *SMALL, "out=sweep")
    abkt(folder, *grid, "workers=2")
    rows = pd.read_parquet(folder / "sweep" / "sweep.parquet")
    assert list(rows.bitrate) == ["raw", "half_the_time"]
    assert (rows.error == "").all()
    assert "2 of them done before" in abkt(folder, *grid, "pool=serial")
    (folder / "my_policy.py").write_text(example().replace("/ 2", "/ 4"))
    assert "1 of them done before" in abkt(folder, *grid, "pool=serial")


@pytest.mark.slow
def test_the_workers_of_a_replay_build_an_own_policy(folder: Path, tiny_model: Path) -> None:
    few = ("workload.scaling.requests=4", *TINY)
    abkt(folder, "replay", CONFIG_DIR, "own", "bitrate=half_the_time", f"model_folder={tiny_model}", *few, "out=real")
    assert list(read_records(folder / "real" / "requests.parquet").outcome) == ["completed"] * 4


def test_a_study_takes_an_own_policy(folder: Path) -> None:
    config = compose("study", [f"hydra.searchpath=[file://{folder / 'own'}]", "+bitrate@bitrates.half=half_the_time"]).config
    assert config["bitrates"]["half"]["_target_"] == "my_policy.HalfTheTime"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([CONFIG_DIR], "--config-dir needs a folder"),
        ([CONFIG_DIR, "nowhere"], "--config-dir needs a folder"),
        ([f"{CONFIG_DIR}="], "--config-dir needs a folder"),
        ([CONFIG_DIR, "own", "bitrate=half_the_tim"], "did you mean half_the_time?"),
        ([CONFIG_DIR, "own", "bitrate=half_the_time"], "policy class 'my_policy.HalfTheTime' cannot be found"),
    ],
)
def test_a_missing_folder_yaml_or_class_is_one_line(
    arguments: list[str], part: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "my_policy.py").unlink()
    assert dispatch(["simulate", *arguments, "out=results"]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1
    assert not (folder / "results").exists()


METHODS = "\n".join(f"    def {name}(self, *given): ..." for name in ("observe", "delivered", "refined", "estimate_bytes_per_s"))


@pytest.mark.parametrize(
    ("code", "yaml", "part"),
    [
        (
            "def broken(:",
            "_target_: my_policy.Mine",
            "policy class 'my_policy.Mine': my_policy cannot be imported: invalid syntax (my_policy.py",
        ),
        ("import nowhere", "_target_: my_policy.Mine", "my_policy cannot be imported: No module named 'nowhere'"),
        ("class Other: ...", "_target_: my_policy.Mine", "policy class 'my_policy.Mine' cannot be found"),
        (f"class Mine:\n{METHODS}", "_target_: my_policy.Mine", "policy class my_policy.Mine has no decide; BitratePolicy says"),
        (
            f"class Mine:\n{METHODS}\n    def decide(self, *given): return 4",
            "_target_: my_policy.Mine",
            "policy Mine decides 4; a Decision of",
        ),
        (
            f"class Mine:\n{METHODS}\n    def decide(self, *given): ...",
            "_target_: my_policy.Mine\nbits: 4",
            "policy my_policy.Mine: Mine() takes no arguments",
        ),
        ("", "_target_: [", "half_the_time.yaml, line 2 cannot be read"),
    ],
    ids=["syntax", "import", "no class", "no decide", "no Decision", "unknown field", "YAML"],
)
def test_a_broken_policy_or_yaml_is_one_line(
    code: str, yaml: str, part: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_policy", raising=False)
    (folder / "my_policy.py").write_text(code)
    (folder / "own" / "bitrate" / "half_the_time.yaml").write_text(yaml + "\n")
    assert dispatch(["simulate", CONFIG_DIR, "own", "bitrate=half_the_time", "out=results"]) == 2
    error = capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "my_policy", raising=False)
    assert part in error
    assert error.count("\n") == 1
    assert not (folder / "results").exists()


def test_a_routing_policy_without_decide_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    (folder / "own" / "routing").mkdir()
    (folder / "own" / "routing" / "mine.yaml").write_text("_target_: abkt.policy.bandwidth.Bandwidth\ninitial_bytes_per_s: 1.0\n")
    assert dispatch(["simulate", CONFIG_DIR, "own", "routing=mine", "out=results"]) == 2
    assert capsys.readouterr().err.endswith(
        "policy class abkt.policy.bandwidth.Bandwidth has no decide; RoutingPolicy says what it needs\n"
    )


def test_folders_are_taken_out_of_the_arguments(tmp_path: Path) -> None:
    assert split_config_dirs(["a=1", CONFIG_DIR, str(tmp_path), "-m"]) == (["a=1", "-m"], [tmp_path.resolve()])
    assert split_config_dirs([f"{CONFIG_DIR}={tmp_path}"]) == ([], [tmp_path.resolve()])
