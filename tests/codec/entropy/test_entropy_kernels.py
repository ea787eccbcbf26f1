"""The entropy coder in Triton without a GPU: the interpreter gives the oracle's bytes and values; ahead-of-time compilation gives the
machine code."""

import json

import pytest
import torch

from tests.triton_check_main import run

pytest.importorskip("triton")
CHECK = "tests.codec.entropy.entropy_triton_check"


@pytest.mark.parametrize("cases", [(), pytest.param(("others",), marks=pytest.mark.slow)])
def test_kernels_give_the_oracles_bytes_errors_and_values(cases):
    run(CHECK, "values", *cases)


SLOW = [pytest.param(str(levels), 6 if levels else 17, marks=pytest.mark.slow) for levels in range(4)]


@pytest.mark.parametrize(("what", "kernels"), [("few", 4), *SLOW])
def test_kernels_compile_ahead_of_time_without_spills_or_fused_sums(what, kernels):
    report = json.loads(run(CHECK, "compile", what, "80", "90"))
    assert len(report) == 2 * kernels
    for row in report:
        assert row["stack"] == row["local"] == row["fused"] == 0, row
        if "code_pass" in row["kernel"]:
            assert row["registers"] <= 48, f"fewer than 1,280 threads a multiprocessor: {row}"


def test_tiles_and_strips_that_the_kernels_cannot_take_are_refused():
    import numpy as np

    from abkt.codec.cells import Cells
    from abkt.codec.entropy.gpu.launch import EntropyExpansion
    from abkt.codec.entropy.gpu.strips import Strips
    from abkt.codec.entropy.stats import Stats
    from abkt.spec import KVLayout, ModelSpec

    cpu, layout = torch.device("cpu"), KVLayout(ModelSpec("any", 1, 1, 128, kv_kinds=1), 2, 32_768)
    with pytest.raises(ValueError, match="tile of 32768 tokens of 128 channels"):
        EntropyExpansion(Cells(layout, 90_000, 32_768, 4), [], None, cpu)
    stats = Stats(np.zeros((1, 128), np.float32), np.ones((1, 128), np.uint8), np.ones(1, dtype=bool))
    layout = KVLayout(ModelSpec("any", 1, 1, 128, kv_kinds=1), 4, 16)
    with pytest.raises(ValueError, match="rotates with the position"):
        EntropyExpansion(Cells(layout, 64, 32, 4), [Strips.of([0], stats, cpu)], None, cpu)


def test_a_sequence_without_cells_has_no_strips():
    import numpy as np

    from abkt.codec.cells import Cells
    from abkt.codec.entropy.gpu.strips import strips_of
    from abkt.spec import KVLayout, ModelSpec

    cells = Cells(KVLayout(ModelSpec("any", 1, 1, 32), 4, 16), 20, 32, 4)
    assert strips_of(b"", np.zeros(2, np.uint8), cells, torch.bfloat16, torch.device("cpu")) == ([], None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("head_dim", [80, 128, 256])
def test_a_gpu_gives_the_bytes_and_values_of_the_cpu(head_dim):
    from abkt.bench import arguments, entropy
    from abkt.bench.case import BenchCase

    case = BenchCase(arguments.parse(["device=cuda", "layers=2", "kv_heads=3", f"head_dim={head_dim}"]), 700, 16)
    assert entropy.check(case) == case.cells(entropy.DEPTH).count
