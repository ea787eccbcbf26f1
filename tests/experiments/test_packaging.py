"""conf/ and data/ are found from a checkout and from a wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from experiments.lib import paths
from experiments.lib.paths import ROOT, conf_dir, data_path
from tests.experiments.test_own_policy import YAML, example


def test_the_wheel_contains_conf_and_data() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"conf": "abkt/conf", "data": "abkt/data"}
    assert set(wheel["packages"]) == {"abkt", "sim", "experiments"}
    assert project["project"]["scripts"] == {"abkt": "abkt.console:main"}


def test_the_checkout_is_looked_at_first_then_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path / "site-packages")
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "site-packages" / "abkt")
    (tmp_path / "site-packages" / "data").mkdir(parents=True)  # somebody else's package of that name
    with pytest.raises(ValueError, match="install abkt again"):
        data_path("traces/x.gz")
    for name, witness in (("conf", "simulate.yaml"), ("data", "ATTRIBUTION.md")):
        folder = tmp_path / "site-packages" / "abkt" / name
        folder.mkdir(parents=True)
        (folder / witness).touch()
    assert conf_dir() == tmp_path / "site-packages" / "abkt" / "conf"
    assert data_path("traces/x.gz") == tmp_path / "site-packages" / "abkt" / "data" / "traces" / "x.gz"


def test_the_constraints_name_torch_exactly_and_each_package_once() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert "torch==2.13.0" in lines
    assert all("==" in line for line in lines)
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_a_wheel_runs_away_from_the_checkout(curves: Path, tmp_path: Path) -> None:
    """Build it, unpack it elsewhere, and simulate with its own conf and its own trace, then with a policy of the user's own."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("abkt-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    arguments = ["simulate", f"curves={curves}", "workload.scaling.requests=5", "progress=false", f"out={tmp_path / 'out'}"]
    code = f"import experiments.cli as cli; assert cli.__file__.startswith({str(site)!r}); cli.main({arguments!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    manifest = (tmp_path / "out" / "manifest.json").read_text()
    assert '"sha": null' in manifest
    assert "mooncake_conversation.jsonl.gz" in manifest

    (tmp_path / "my_policy.py").write_text(example())
    (tmp_path / "own" / "bitrate").mkdir(parents=True)
    (tmp_path / "own" / "bitrate" / "half_the_time.yaml").write_text(YAML)
    arguments[-1:] = ["--config-dir", "own", "bitrate=half_the_time", "out=own_policy"]
    code = f"import sys; from abkt.console import main; sys.argv = ['abkt', *{arguments!r}]; main()"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    assert '"completed": 5' in (tmp_path / "own_policy" / "summary.json").read_text()
