"""Each notebook runs in less than a minute, is the same as the .py beside it, and holds no output."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.lib.paths import ROOT

SOURCES = sorted((ROOT / "notebooks").glob("*.py"))
NAMES = [path.stem for path in SOURCES]
QUICK = "01_quickstart"  # in the default run
LIMIT_S = 60


def test_there_are_six_notebooks() -> None:
    topics = ["01_quickstart", "02_codec", "03_bitrate_policies", "04_cluster_scheduling", "05_validation", "06_longbench"]
    assert topics == NAMES


def cells(source: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell of a py:percent file; markdown without its comment signs, magics without theirs."""
    found = []
    for part in source.split("\n# %%")[1:]:
        head, _, body = part.partition("\n")
        kind = "markdown" if "[markdown]" in head else "code"
        lines = body.strip("\n").split("\n")
        lines = [line.removeprefix("#").removeprefix(" ") if kind == "markdown" or line.startswith("# %") else line for line in lines]
        found.append((kind, "\n".join(lines)))
    return found


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_the_pair_is_the_same_and_holds_no_output(source: Path) -> None:
    notebook = json.loads(source.with_suffix(".ipynb").read_text())
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]] == cells(source.read_text())
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert "# # " in source.read_text()  # it explains


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_logic_lives_in_the_packages(source: Path) -> None:
    assert "\ndef " not in source.read_text()
    assert "\nclass " not in source.read_text()


@pytest.mark.parametrize("name", [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_it_runs(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("nbmake") is None or importlib.util.find_spec("ipykernel") is None:
        pytest.skip("nbmake or ipykernel is not installed")
    notebook = ROOT / "notebooks" / f"{name}.ipynb"
    options = ["--nbmake", f"--nbmake-timeout={5 * LIMIT_S}", "-p", "no:cacheprovider", "-o", "addopts=", "-W", "default"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_RUNTIME_DIR": str(tmp_path), "IPYTHONDIR": str(tmp_path / "ipython")}
    command = [sys.executable, "-m", "pytest", *options, str(notebook)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
