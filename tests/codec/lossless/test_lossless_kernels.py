"""The lossless code's Triton kernels without a GPU: the interpreter gives their values, ahead-of-time compilation their machine code."""

import json

import pytest

from tests.triton_check_main import run

pytest.importorskip("triton")
CHECK = "tests.codec.lossless.lossless_triton_check"


@pytest.mark.parametrize("cases", ["2", pytest.param("6", marks=pytest.mark.slow)])
def test_kernels_give_the_oracles_values(cases):
    run(CHECK, "values", cases)


def test_kernels_compile_ahead_of_time_without_spills():
    report = json.loads(run(CHECK, "compile", "80", "90"))
    assert len(report) == 6
    for row in report:
        assert row["stack"] == row["local"] == 0, row
        assert min(row["wide_loads"], row["wide_stores"]) >= 7, f"not 16 bytes at a time: {row}"
