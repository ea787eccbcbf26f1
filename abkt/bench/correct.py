"""Whether the codec's backend on a device gives the oracle's bytes and values, for every dtype and many shapes. Nothing is timed.

One row a case, named dtype, head_dim, tokens, tile, block and depth: its number of cells. A cell with NaN and a channel of equal values are
in each. The last rows say how many cases agree, and that a raw gather and scatter move the right blocks.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch

from abkt.bench import copies
from abkt.bench.arguments import BenchArguments
from abkt.bench.rows import BenchRow
from abkt.codec.cells import Cells
from abkt.codec.codec import Codec
from abkt.codec.fixed.backend import Arrived
from abkt.codec.fixed.centre import value_centres
from abkt.codec.fixed.oracle import OracleBackend
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec


class Shape(NamedTuple):
    dtype: str
    head_dim: int
    tokens: int
    tile_tokens: int
    block_tokens: int


SHAPES = (
    Shape("bfloat16", 128, 560, 128, 16),  # full tiles and a shorter one
    Shape("bfloat16", 128, 700, 256, 64),
    Shape("bfloat16", 64, 300, 128, 16),
    Shape("bfloat16", 80, 300, 128, 16),  # channels do not fill a power of two
    Shape("bfloat16", 256, 300, 128, 16),  # two parts of a head
    Shape("bfloat16", 576, 300, 128, 64),
    Shape("bfloat16", 16, 77, 32, 16),  # all tokens are measured
    Shape("float16", 128, 300, 128, 16),
    Shape("float32", 128, 300, 128, 16),
)
LAYERS, KV_HEADS = 2, 2


def rows(arguments: BenchArguments, about: dict[str, str]) -> Iterator[BenchRow]:
    """Yields a row a case. Raises ValueError, which names the cases that differ, after the last."""
    device, wrong, agreed, cases = torch.device(arguments.device), [], 0, cases_of(arguments)
    for (shape, depth), (cells, difference) in zip(cases, _each(cases, device), strict=True):
        name = "/".join(map(str, (*shape, f"{depth}bit")))
        if difference:
            wrong.append(f"{name}: {difference}")
        agreed += not difference
        yield BenchRow(f"correct/{name}", 0.0 if difference else float(cells), "cells")
    yield BenchRow("cases_that_agree", float(agreed), "cases", float(len(cases)))
    layout = KVLayout(ModelSpec("check", LAYERS, KV_HEADS, 128), 12, 16)
    pool = Pool(layout, device)
    pool.data.normal_()
    copies.check(pool, [7, 2, 9, 4])
    yield BenchRow("copies_that_agree", 1.0, "gather and scatter")
    if wrong:
        raise ValueError(f"{len(wrong)} cases differ from the oracle: {'; '.join(wrong[:3])}")


def cases_of(arguments: BenchArguments) -> list[tuple[Shape, int]]:
    """The first shape at every depth, the others at the deepest: each case is compiled anew on a GPU, which takes seconds a kernel."""
    return [(SHAPES[0], depth) for depth in arguments.depths] + [(shape, max(arguments.depths)) for shape in SHAPES[1:]]


def _each(cases: list[tuple[Shape, int]], device: torch.device) -> Iterator[tuple[int, str]]:
    """`compared` for every case; on a GPU in processes side by side, because compiling takes most of the time."""
    if device.type == "cpu":
        yield from (compared(shape, depth, device) for shape, depth in cases)
        return
    workers = min(len(cases), os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(compared, *zip(*cases, strict=True), [device] * len(cases))


def compared(shape: Shape, depth: int, device: torch.device) -> tuple[int, str]:
    """The number of cells of a case, and in what the device differs from the oracle; empty if in nothing."""
    spec = ModelSpec("check", LAYERS, KV_HEADS, shape.head_dim, shape.dtype)
    blocks = -(-shape.tokens // shape.block_tokens)
    layout, generator = KVLayout(spec, blocks + 3, shape.block_tokens), torch.Generator().manual_seed(shape.tokens + depth)
    host = Pool(layout)
    host.data.copy_(torch.randn(host.data.shape, generator=generator) * 2 + torch.randn(host.data.shape[-1], generator=generator))
    table = (torch.randperm(blocks + 2, generator=generator)[:blocks] + 1).tolist()
    cells = Cells(layout, shape.tokens, shape.tile_tokens, depth)
    coded_blocks = cells.coded_table(table)
    host.data[coded_blocks[-1], 0, 1, 0, 0, 3] = float("nan")
    host.data[coded_blocks[0], 0, 0, 0, :, 2] = 1.5
    pool = Pool(layout, device)
    pool.data.copy_(host.data)
    backend, centres = Codec(layout, tile_tokens=shape.tile_tokens).backend_on(device), value_centres(host.data, coded_blocks, cells)
    ours = backend.encode(pool.data, coded_blocks, cells, centres)
    theirs = OracleBackend().encode(host.data, coded_blocks, cells, centres)
    if not np.array_equal(ours.classes, theirs.classes):
        return cells.count, "classes"
    if not torch.equal(ours.body.cpu(), theirs.body):
        return cells.count, "bytes"
    if not np.allclose(ours.errors, theirs.errors, rtol=1e-3, atol=1e-9) or not np.allclose(ours.deviation, theirs.deviation, rtol=1e-3):
        return cells.count, "errors"
    have = (np.arange(cells.count) % (cells.passes + 1)).astype(np.int8)
    arrived, results = Arrived(theirs.body.numpy(), cells.offsets, have, theirs.classes, centres), []
    for one, at in ((backend, device), (OracleBackend(), torch.device("cpu"))):
        out = Pool(layout, at)
        one.expand(arrived, out.data, coded_blocks, cells)
        results.append(out.data.cpu())
    return cells.count, "" if torch.equal(*results) else "values"


def total_work(arguments: BenchArguments) -> float:
    return len(cases_of(arguments)) + 2.0


def work(row: BenchRow) -> float:
    return 1.0


def is_shown(row: BenchRow) -> bool:
    return not row.name.startswith("correct/")


def facts(arguments: BenchArguments) -> dict[str, str]:
    gpu = torch.cuda.get_device_name(0) if arguments.device == "cuda" else "none"
    return {"gpu": gpu, "torch": torch.__version__, "python": platform.python_version()}
