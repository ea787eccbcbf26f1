"""The compiled simulator: it gives the records of the Python one to the last bit, and it is used only where it is built and wanted."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from abkt import compiled, compiler
from experiments.lib.paths import ROOT
from tests.sim.configurations import CONFIGURATIONS


def run(wanted: str, cache: Path | None, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ABKT_COMPILED": wanted, "PYTHONPATH": str(ROOT)}
    if cache is not None:
        environment["XDG_CACHE_HOME"] = str(cache)
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None or importlib.util.find_spec("mypyc") is None, reason="needs a C compiler and mypyc")
def test_compiled_and_python_give_the_same_records(tmp_path: Path) -> None:
    compiler.build()
    texts = {}
    for wanted in ("0", "1"):
        done = run(wanted, None, "-m", "tests.sim.configurations", str(tmp_path / wanted))
        assert done.returncode == 0, done.stderr
        texts[wanted] = json.loads((tmp_path / wanted).read_text())
    assert len(texts["0"]) == len(CONFIGURATIONS) > 20
    for name, records in texts["0"].items():
        assert texts["1"][name] == records, name


def test_a_build_that_is_wanted_and_missing_is_refused_in_one_line(tmp_path: Path) -> None:
    says = "import abkt, abkt.compiled; print(abkt.compiled.in_use())"
    assert run("", tmp_path, "-c", says).stdout == "False\n"
    assert run("0", tmp_path, "-c", says).stdout == "False\n"
    refused = run("1", tmp_path, "-c", says)
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("ImportError: ABKT_COMPILED=1, and the simulator's modules are not compiled")


def test_only_commands_that_simulate_use_a_build(tmp_path: Path) -> None:
    made = tmp_path / "abkt" / "compiled"
    made.mkdir(parents=True)
    says = f"from pathlib import Path; from abkt import compiled; compiled.folder = lambda: Path({str(made)!r})"
    for verb, used in (("replay", "False"), ("study", "False"), ("bench kernels", "False"), ("simulate", "True"), ("bench sim", "True")):
        ends = f"{says}; compiled.use_compiled_for({verb!r}); print(compiled.in_use())"
        environment = {name: value for name, value in os.environ.items() if name != "ABKT_COMPILED"} | {"XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", ends], capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
        assert done.stdout.strip() == used, (verb, done.stderr)


def test_the_folder_of_a_build_follows_from_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiled.folder()
    assert before == compiled.folder()
    changed = tmp_path / "flows.py"
    changed.write_text("x = 1\n")
    sources = compiled.sources()
    assert all(source.is_file() for source in sources)
    monkeypatch.setattr(compiled, "sources", lambda: [*sources, changed])
    assert compiled.folder() != before


def test_without_a_compiler_the_build_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "CC": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "abkt.compiler"], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (1, "abkt.compiler: no C compiler is found; the simulator runs as plain Python\n")
    assert not list(tmp_path.rglob("*.so"))
