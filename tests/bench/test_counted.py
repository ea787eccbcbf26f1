"""What kernels cost by count: how machine code is read, and the budget that the codec's kernels keep. No GPU is needed."""

import os

import pytest

from abkt.bench import arguments, counted
from abkt.bench.sass import Loop, MachineCode, parsed

CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA 0x0050 ;
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0040*/               @P0 BRA 0x20 ;
        /*0050*/                   STG.E.U16 desc[UR4][R2.64], R5 ;
        /*0060*/               @P1 EXIT ;
        /*0070*/                   BRA 0x10 ;
        /*0080*/                   RET.REL.NODEC R4 0x0 ;
        /*0090*/                   NOP;
"""


def of(code: str, **facts) -> MachineCode:
    return MachineCode(**({"registers": 128, "stack": 0, "shared": 2048, "warps": 2, "fused": 0} | facts), code=parsed(code))


def test_loops_are_branches_back_and_what_lies_behind_the_exit_is_left_out():
    code = of(CODE)
    assert [i.name for i in code.code] == ["LDC", "BRA", "LDG.E.128", "BAR.SYNC.DEFER_BLOCKING", "BRA", "STG.E.U16", "EXIT", "BRA"]
    assert code.loops == (Loop(0x10, 0x70), Loop(0x20, 0x40))
    assert code.inner_loops() == (Loop(0x20, 0x40),)
    assert (code.count("BAR", Loop(0x20, 0x40)), code.count("BAR", Loop(0x50, 0x60))) == (1, 0)
    assert (code.widest("LDG"), code.widest("STG")) == (16, 2)


def test_instructions_count_as_often_as_their_loops_run():
    kernel = counted.Kernel("encode_k", None, {}, {}, {}, {"LDG": 5}, values=640)
    # 1 before the loop over 10 cells; in it 4 of a cell, and 3 in a loop that runs 5 times
    assert counted.instructions(kernel, of(CODE), 10) == pytest.approx(0.1 + 4 + 5 * 3)
    assert counted.per_value(kernel, of(CODE), 10) == pytest.approx(19.1 * 64 / 640)


@pytest.mark.parametrize(
    ("facts", "blocks"),
    [({}, 8), ({"registers": 129}, 7), ({"registers": 32}, 32), ({"registers": 32, "warps": 4}, 16), ({"shared": 40 * 1024}, 3)],
)
def test_blocks_are_limited_by_registers_threads_and_shared_memory(facts, blocks):
    assert of(CODE, **facts).blocks_per_multiprocessor() == blocks


def budget(depth: int, architecture: int) -> dict[str, float]:
    rows = counted.rows(arguments.parse([f"depths={depth}", f"architectures={architecture}"]), {})
    return {row.name.partition("/")[0].replace(f"_{depth}bit", ""): row.value for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "depth", "instructions"), [(80, 4, 22), (90, 4, 21), (100, 4, 21), (80, 8, 25), (90, 8, 24), (100, 8, 24)]
)
def test_the_kernels_keep_their_budget(architecture, depth, instructions):
    pytest.importorskip("triton")
    found = budget(depth, architecture)
    assert found["encode_instructions_per_value"] <= instructions
    assert found["expand_instructions_per_value"] <= 14
    for verb in ("encode", "expand"):
        assert found[f"{verb}_occupancy"] >= 0.25
        assert found[f"{verb}_barriers_in_inner_loops"] == 0
        assert found[f"{verb}_over_memory"] <= 1.25 or architecture == 80, "the memory's time is that of an H200"
        assert found[f"{verb}_stack_bytes"] <= 16
        assert found[f"{verb}_store_bytes"] == 16
    assert found["encode_load_bytes"] == 16


def test_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="unset TRITON_INTERPRET"):
        next(counted.rows(arguments.parse([]), {}))
