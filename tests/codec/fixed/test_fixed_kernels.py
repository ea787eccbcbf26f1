"""The fixed coder's Triton kernels without a GPU: the interpreter gives their values, ahead-of-time compilation their machine code."""

import json

import pytest

from tests.triton_check_main import run

pytest.importorskip("triton")
CHECK = "tests.codec.fixed.fixed_triton_check"


@pytest.mark.parametrize("which", ["few", pytest.param("others", marks=pytest.mark.slow)])
def test_kernels_give_the_oracles_values(which):
    run(CHECK, "values", which)


CASES = [("4", "64"), ("8", "128")]
SLOW = [(depth, dim) for depth in "123468" for dim in ("64", "80", "128", "256") if (depth, dim) not in CASES]


@pytest.mark.parametrize(("depth", "dim"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_kernels_compile_ahead_of_time_without_spills_in_their_loops(depth, dim):
    report = json.loads(run(CHECK, "compile", depth, dim, "80", "90"))
    assert len(report) == 14
    for row in report:
        assert row["local_in_loops"] == 0, row
        assert row["stack"] <= (16 if "encode" in row["kernel"] else 0), f"a few words of a cell at most: {row}"
        if "encode" in row["kernel"]:
            assert row["wide_loads"] >= 3, f"KV is not read 16 bytes at a time: {row}"
        elif "expand" in row["kernel"]:
            assert row["wide_stores"] >= 1, f"KV is not written 16 bytes at a time: {row}"
