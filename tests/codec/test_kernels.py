"""The Triton kernels without a GPU: their values in the interpreter, their code by ahead-of-time compilation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("triton_check.py")


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_values_are_the_oracle_s():
    run("values")


@pytest.mark.parametrize("depth", ["4", pytest.param("2", marks=pytest.mark.slow), pytest.param("8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_compiles_ahead_of_time_without_spills(architecture, depth):
    report = json.loads(run("compile", depth, architecture))
    assert len(report) == 4
    for row in report:
        assert row["stack"] == row["local"] == 0, row
        if "encode" in row["kernel"]:
            assert row["wide_loads"] >= 4, f"KV is not read 16 bytes at a time: {row}"
        else:
            assert row["wide_stores"] >= 4, f"KV is not written 16 bytes at a time: {row}"
