"""The Triton kernels of the exact code without a GPU: their values in the interpreter, their code by ahead-of-time compilation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).with_name("exact_triton_check.py")


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("cases", ["3", pytest.param("6", marks=pytest.mark.slow)])
def test_values_are_the_oracle_s(cases):
    run("values", cases)


def test_compiles_ahead_of_time_without_spills():
    report = json.loads(run("compile", "80", "90"))
    assert len(report) == 6
    for row in report:
        assert row["stack"] == row["local"] == 0, row
        assert min(row["wide_loads"], row["wide_stores"]) >= 7, f"not 16 bytes at a time: {row}"
