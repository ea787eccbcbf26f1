"""The Triton kernels of the lossless code without a GPU: their values in the interpreter, their code by ahead-of-time compilation."""

import json

import pytest

from tests.triton_check_main import run

pytest.importorskip("triton")
CHECK = "tests.codec.lossless.lossless_triton_check"


@pytest.mark.parametrize("cases", ["3", pytest.param("6", marks=pytest.mark.slow)])
def test_values_are_the_oracle_s(cases):
    run(CHECK, "values", cases)


def test_compiles_ahead_of_time_without_spills():
    report = json.loads(run(CHECK, "compile", "80", "90"))
    assert len(report) == 6
    for row in report:
        assert row["stack"] == row["local"] == 0, row
        assert min(row["wide_loads"], row["wide_stores"]) >= 7, f"not 16 bytes at a time: {row}"
