"""Checks of the fixed coder's kernels, run by test_fixed_kernels.py (triton_check_main.py).

python -m tests.codec.fixed.fixed_triton_check compile DEPTH DIM 80 90   DEPTH in bits, heads of DIM channels
"""

from tests.triton_check_main import compiled, main

SHAPES = [  # tokens, layers, heads, head_dim, block tokens, tile tokens, dtype
    (77, 1, 1, 64, 16, 32, "bfloat16"),
    (20, 1, 2, 20, 3, 9, "bfloat16"),
    (60, 2, 1, 16, 8, 32, "float16"),
    (29, 1, 1, 80, 4, 16, "float32"),
    (50, 1, 1, 576, 16, 16, "bfloat16"),
    (190, 1, 2, 16, 8, 96, "bfloat16"),  # tiles of 96 and 80 tokens, of which an eighth is measured
]


CASES = [*((shape, 8) for shape in SHAPES[:5]), *zip([SHAPES[i] for i in (0, 1, 2, 0, 3, 5)], (1, 2, 3, 4, 6, 4), strict=True)]
FEW = (2, 3, 6, 10)  # each dtype, and tiles of which an eighth is measured; the others take a minute


def check_values(which: str = "few") -> None:
    import numpy as np
    import torch

    from abkt.codec.cells import Cells
    from abkt.codec.codec import Codec
    from abkt.codec.coder import VERBATIM
    from abkt.codec.fixed.backend import Arrived
    from abkt.codec.fixed.centre import value_centres
    from abkt.codec.fixed.launch import TritonBackend
    from abkt.codec.fixed.oracle import OracleBackend
    from abkt.kv.pool import Pool
    from tests.codec.conftest import make_layout, make_pool

    for shape, depth in (case for i, case in enumerate(CASES) if (i in FEW) == (which == "few")):
        tokens, layers, heads, dim, block_tokens, tile, dtype = shape
        layout = make_layout(layers, heads, dim, dtype, blocks=24, block_tokens=block_tokens)
        pool, cells = make_pool(layout, seed=tokens), Cells(layout, tokens, tile, depth)
        table = torch.randperm(24, generator=torch.Generator().manual_seed(1))[: layout.blocks_for(tokens)].tolist()
        blocks = cells.coded_table(table)
        pool.data[blocks[-1], 0, 1, 0, 0, 3] = float("nan")
        pool.data[blocks[0], 0, 0, 0, :, 2] = 1.5
        centres = value_centres(pool.data, blocks, cells)
        a, b = (path.encode(pool.data, blocks, cells, centres) for path in (OracleBackend(), TritonBackend()))
        assert np.array_equal(a.classes, b.classes), f"{shape}, depth {depth}: classes differ"
        assert torch.equal(a.body, b.body), f"{shape}, depth {depth}: encoded bytes differ"
        assert (a.classes == VERBATIM).sum() == 1
        assert np.allclose(a.errors, b.errors, rtol=1e-4, atol=1e-9)
        assert np.allclose(a.deviation, b.deviation, rtol=1e-4)
        have = (np.arange(cells.count) % (cells.passes + 1)).astype(np.int8)
        results = []
        for path in (OracleBackend(), TritonBackend()):
            out = Pool(layout)
            path.expand(Arrived(a.body.numpy(), cells.offsets, have, a.classes, centres), out.data, blocks, cells)
            results.append(out.data)
        assert torch.equal(*results), f"{shape}, depth {depth}: expanded values differ"
    layout = make_layout(layers=1, heads=1, dim=32)
    pool, table = make_pool(layout), list(range(5, 0, -1))
    streams = [Codec(layout, backend, tile_tokens=32).encode(pool, table, 70, order="uniform") for backend in ("oracle", "triton")]
    assert bytes(streams[0].sums) == bytes(streams[1].sums)
    results = []
    for backend in ("oracle", "triton"):
        out = Pool(layout)
        Codec(layout, backend, tile_tokens=32).expand(streams[1].prefix(2), out, table)
        results.append(out.data)
    assert torch.equal(*results)
    check_buffers_used_again()
    check_nothing_waits()
    check_order()


def check_buffers_used_again() -> None:
    """One Encoding codes two sequences, the first with a verbatim cell. The second's codes and report are those of a new Encoding."""
    import numpy as np
    import torch

    from abkt.codec.cells import Cells
    from abkt.codec.coder import VERBATIM
    from abkt.codec.fixed.centre import value_centres
    from abkt.codec.fixed.enqueue import Encoding
    from abkt.codec.fixed.oracle import OracleBackend
    from tests.codec.conftest import make_layout, make_pool

    layout = make_layout(layers=1, heads=1, dim=16)
    pool, cells = make_pool(layout), Cells(layout, 70, 32, 4)
    tables = [cells.coded_table([0, 1, 2, 3, 4]), cells.coded_table([5, 9, 8, 6, 7])]
    pool.data[tables[0][0], 0, 0, 0, 2, 3] = float("nan")
    work = Encoding(cells, pool.data.device)
    for table in tables:
        work.table.copy_(torch.tensor(table))
        work.enqueue(pool.data)
        work.copy_report()
        centres = value_centres(pool.data, table, cells)
        expected = OracleBackend().encode(pool.data, table, cells, centres)
        assert np.array_equal(work.centres.numpy(), centres)
        assert np.array_equal(work.host.classes.numpy(), expected.classes)
        assert np.allclose(work.host.errors, expected.errors, rtol=1e-4, atol=1e-9)
        assert np.allclose(work.host.deviation, expected.deviation, rtol=1e-4)
        for offset, size in zip(
            cells.offsets.T[expected.classes != VERBATIM].flat, cells.sizes.T[expected.classes != VERBATIM].flat, strict=True
        ):
            assert torch.equal(work.body[offset : offset + size], expected.body[offset : offset + size])
    assert (expected.classes != VERBATIM).all()


def check_nothing_waits() -> None:
    """An encode and an expansion that are enqueued call nothing that waits for the device, and write into memory that they had before."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from abkt.codec.cells import Cells
    from abkt.codec.fixed.arena import Arena
    from abkt.codec.fixed.enqueue import Encoding, Expansion
    from tests.codec.conftest import make_layout, make_pool

    class Recorded(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.append(str(function))
            return function(*args, **(kwargs or {}))

    layout = make_layout(layers=1, heads=1, dim=16)
    pool, cells, arena = make_pool(layout), Cells(layout, 70, 32, 2), Arena(torch.device("cpu"))
    encoding, expansion = Encoding(cells, arena.device, arena), Expansion(cells, arena.device)
    for work in (encoding, expansion):
        work.table.copy_(torch.tensor(cells.coded_table([0, 1, 2, 3, 4])))
    body, held = encoding.body.data_ptr(), arena.held_bytes
    with Recorded() as recorded:
        encoding.enqueue(pool.data)
        expansion.enqueue(encoding.body, pool.data)
    waits = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")
    assert recorded.names
    assert not [name for name in recorded.names if any(word in name for word in waits)], recorded.names
    shorter = Encoding(Cells(layout, 50, 32, 2), arena.device, arena)
    assert shorter.body.data_ptr() == body
    assert arena.held_bytes == held


def check_order() -> None:
    """Bands, their bytes and their distortion equal those of order.py, with weights, a verbatim cell and a pass that removes nothing."""
    import numpy as np
    import torch

    from abkt.codec.cells import Cells
    from abkt.codec.coder import VERBATIM
    from abkt.codec.fixed.enqueue import Report
    from abkt.codec.order import distortions, slope_bands, weighted_distortion
    from abkt.codec.order_kernels import Ordering
    from tests.codec.conftest import make_layout

    cells, rng = Cells(make_layout(layers=3, heads=2, dim=16), 300, 32, 8), np.random.default_rng(0)
    report, ordering = Report.of(cells, torch.device("cpu")), Ordering(cells, torch.device("cpu"))
    for _ in range(2):  # buffers are used again
        falling = np.exp(rng.standard_normal(cells.count)) * 0.3 ** np.arange(cells.passes + 1)[:, None]
        errors = (falling * np.exp(0.5 * rng.standard_normal(falling.shape))).astype(np.float32)
        deviation, classes = rng.random(cells.shape[:3]) + 1, rng.integers(0, 16, cells.count).astype(np.uint8)
        classes[5], errors[:, 5], errors[3:, 7], deviation[1, 0] = VERBATIM, 0, errors[2, 7], 0
        weights = rng.random(cells.shape)
        for to, given in ((report.errors, errors), (report.deviation, deviation), (report.classes, classes)):
            to.copy_(torch.from_numpy(given))
        ordering.weights.copy_(torch.from_numpy(weights.reshape(-1) / np.average(weights.reshape(-1), weights=cells.values)))
        ordering.enqueue(report)
        left = weighted_distortion(errors.astype(np.float64), deviation, weights, cells)
        bands = slope_bands(cells.sizes, left)
        assert 30 < bands.count <= 64
        assert np.array_equal(ordering.bands.numpy(), bands.of)
        sent = bands.of < 255
        assert ordering.bytes_of_band.numpy().tolist() == np.bincount(bands.of[sent], cells.sizes[1:][sent], 64).astype(int).tolist()
        after = left[0].sum() - ordering.removed.numpy().cumsum()[: bands.count]
        assert np.allclose(after, distortions(bands, left)[1:], rtol=1e-9)


def check_compile(depth: str, dim: str, *architectures: str) -> list[dict]:
    from abkt.bench.counted import kernels_of
    from abkt.codec import order_kernels
    from abkt.codec.cells import Cells
    from abkt.spec import KVLayout, ModelSpec

    cells, report = Cells(KVLayout(ModelSpec("any", layers=6, kv_heads=2, head_dim=int(dim)), 126), 2003, 128, int(depth)), []
    for kernel in kernels_of(cells):
        report += compiled(kernel.function, architectures, kernel.types, kernel.constants, kernel.options, kernel.name)
    types = {
        "errors": "*fp32", "classes": "*u8", "sizes": "*i64", "shares": "*fp64", "weights": "*fp64", "keys": "*i32", "bytes_of_bin": "*i64",
        "ends": "*i64", "begins": "*i32", "numbers": "*i64", "bands": "*u8", "bytes_of_band": "*i64", "removed": "*fp64",
    }  # fmt: skip
    ordering = {"PASSES": cells.passes, "CELLS": order_kernels.CELLS, "SIZE": 1024}
    for kernel in (order_kernels.count_slopes, order_kernels.begin_bands, order_kernels.fill_bands):
        report += compiled(kernel, architectures, types, ordering, {})
    return report


if __name__ == "__main__":
    main(check_values, check_compile)
