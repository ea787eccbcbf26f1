"""What the codec's GPU kernels cost by count: read from their machine code, on a machine without a GPU. Counted, not measured.

Instructions a value are those that a warp issues for a cell, over the values of the cell that a lane of it handles. Every instruction
between a kernel's begin and its exit counts, as often as its loops run, also where a branch may skip it. The time by issue is that of one
instruction a clock on every scheduler; the time by memory is that of the bytes that must move, once each. The larger is the *counted time*.
Not modelled: waiting for memory and barriers, units with less than full throughput (conversions, shuffles), caches that are too small.

The shape is that of Llama-3.1-8B, TOKENS tokens, tiles of 128; the GPU an H200. Encode and expand are the mean of a kernel for K and one
for V. The other kernels are in counted_others.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from abkt.bench.arguments import BenchArguments
from abkt.bench.counted_others import others
from abkt.bench.rows import BenchRow
from abkt.bench.sass import MachineCode, compiled
from abkt.codec.cells import Cells
from abkt.spec import KVLayout, ModelSpec

LLAMA = ModelSpec("llama-3.1-8b", layers=32, kv_heads=8, head_dim=128)
TOKENS, BLOCK_TOKENS, TILE_TOKENS = 8_192, 16, 128
MULTIPROCESSORS, SCHEDULERS, CLOCK_HZ, BYTES_PER_S = 132, 4, 1.755e9, 4.3e12  # H200; bytes read and written together
WARPS_PER_MULTIPROCESSOR = 64
MAIN = 90  # the architecture whose rows have no suffix
DEPTHS = (4, 8)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel as it is compiled. types, constants, options: as for sass.compiled. trips: how often each loop of a cell runs, by the
    instruction by which it is recognised, in this order; a loop that none of them fits runs once. values: values of a cell."""

    name: str
    function: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    trips: dict[str, int] = field(default_factory=dict)
    values: int = 0


def kernels_of(cells: Cells) -> list[Kernel]:
    """The encode and expand kernels of full tiles, for K and for V."""
    import torch

    from abkt.codec.fixed.enqueue import constants, span_of, tokens_at_once
    from abkt.codec.fixed.gpu.encode import encode_cells
    from abkt.codec.fixed.gpu.expand import expand_cells
    from abkt.codec.fixed.quantize import LIMIT, MARGINS

    options = constants(cells)
    fixed: dict[str, Any] = {name: options.pop(name) for name in list(options) if name.isupper()}
    outer, inner = MARGINS.get(cells.depth_bits, (0.0, 0.0))
    fixed |= {"OUTER": outer, "INNER": inner, "BOUND": LIMIT[torch.bfloat16], "FULL": True}
    fixed |= {"SPAN": span_of(cells), "TOKENS": tokens_at_once(cells)}
    types = {
        "data": "*bf16", "starts": "*i64", "centres": "*fp32", "offsets": "*i64", "body": "*u8", "wire": "*u8", "scratch": "*fp32",
        "errors": "*fp32", "classes": "*u8", "rules": "*i32", "sums": "*fp32", "spreads": "*fp32", "presence": "*i8",
    }  # fmt: skip
    chunks, values = -(-cells.tile_tokens // 8 // fixed["ROWS"]), cells.tile_tokens * cells.dim
    found = []
    for verb, function in (("encode", encode_cells), ("expand", expand_cells)):
        for kind in "kv":
            survey = chunks if kind == "k" else -(-cells.tile_tokens // fixed["TOKENS"])
            trips = {"IDP": chunks, "V?H?F?MNMX": survey, "F2FP": chunks} if verb == "encode" else {"STG": chunks}
            found.append(Kernel(f"{verb}_{kind}", function, types, fixed | {"KEY": kind == "k"}, options, trips, values))
    return found


def instructions(kernel: Kernel, code: MachineCode, cells_of_program: float) -> float:
    """Instructions that each warp of a program issues for a cell. What lies outside of the loop over cells is shared by them."""
    outer = [loop for loop in code.loops if loop not in code.inner_loops()] if kernel.name.startswith("encode") else []
    total = 0.0
    for instruction in code.code:
        times = 1.0 if not outer or any(loop.holds(instruction.at) for loop in outer) else 1 / cells_of_program
        for loop in code.inner_loops():
            if loop.holds(instruction.at):
                times *= next((runs for name, runs in kernel.trips.items() if code.count(name, loop)), 1)
        total += times
    return total


def per_value(kernel: Kernel, code: MachineCode, cells_of_program: float) -> float:
    return instructions(kernel, code, cells_of_program) * 32 * code.warps / kernel.values


def rows(arguments: BenchArguments, about: dict[str, str]) -> Iterator[BenchRow]:
    """Yields the rows of every kernel, depth and architecture. Raises ValueError under Triton's interpreter."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("counted: kernels are compiled; unset TRITON_INTERPRET")
    for architecture in arguments.architectures:
        for depth in (depth for depth in DEPTHS if depth in arguments.depths):
            cells = Cells(KVLayout(LLAMA, TOKENS // BLOCK_TOKENS + 2, BLOCK_TOKENS), TOKENS + 2 * BLOCK_TOKENS, TILE_TOKENS, depth)
            kernels = kernels_of(cells)
            for verb in ("encode", "expand"):
                of_verb = [k for k in kernels if k.name.startswith(verb)]
                codes = [compiled(k.function, architecture, k.types, k.constants, k.options) for k in of_verb]
                yield from _rows(f"{verb}_{depth}bit", _suffix(architecture), of_verb, codes, cells)
        yield from _rows_of_others(architecture)


def _suffix(architecture: int) -> str:
    return "" if architecture == MAIN else f"/sm_{architecture}"


def _rows_of_others(architecture: int) -> Iterator[BenchRow]:
    cells, suffix = Cells(KVLayout(LLAMA, TOKENS // BLOCK_TOKENS, BLOCK_TOKENS), TOKENS, TILE_TOKENS, max(DEPTHS)), _suffix(architecture)
    values = LLAMA.kv_bytes_per_token // 2 * TOKENS
    for other in others(cells):
        code = compiled(other.function, architecture, other.types, other.constants, other.options)
        each = other.per_value(code)
        by_issue, by_memory = each * values / 32 / (MULTIPROCESSORS * SCHEDULERS * CLOCK_HZ), values * other.moved / BYTES_PER_S
        warps = code.blocks_per_multiprocessor() * code.warps
        yield BenchRow(f"{other.name}_instructions_per_value{suffix}", each, "instructions")
        yield BenchRow(f"{other.name}_registers{suffix}", code.registers, "of a thread")
        yield BenchRow(f"{other.name}_occupancy{suffix}", warps / WARPS_PER_MULTIPROCESSOR, "of 64 warps")
        yield BenchRow(f"{other.name}_stack_bytes{suffix}", code.stack, "bytes of a thread")
        yield BenchRow(f"{other.name}_issue_ms{suffix}", by_issue * 1e3, "ms", by_memory * 1e3)
        yield BenchRow(f"{other.name}_counted_ms{suffix}", max(by_issue, by_memory) * 1e3, "ms", by_memory * 1e3)
        yield BenchRow(f"{other.name}_over_memory{suffix}", max(by_issue, by_memory) / by_memory, "of the memory's time", 1.0)


def _rows(name: str, suffix: str, kernels: Sequence[Kernel], codes: Sequence[MachineCode], cells: Cells) -> Iterator[BenchRow]:
    from abkt.codec.fixed.enqueue import TILES_AT_ONCE

    count = cells.count // len(kernels)
    of_program = count / (MULTIPROCESSORS * TILES_AT_ONCE)
    each = [per_value(kernel, code, of_program) for kernel, code in zip(kernels, codes, strict=True)]
    mean, values = sum(each) / len(each), int(cells.values.sum())
    moved = values * 2 + cells.body_bytes
    by_issue, by_memory = mean * values / 32 / (MULTIPROCESSORS * SCHEDULERS * CLOCK_HZ), moved / BYTES_PER_S
    counted = max(by_issue, by_memory)
    warps = min(code.blocks_per_multiprocessor() * code.warps for code in codes)
    yield BenchRow(f"{name}_instructions_per_value{suffix}", mean, "instructions")
    for kernel, value in zip(kernels, each, strict=True):
        yield BenchRow(f"{name}_{kernel.name[-1]}_instructions_per_value{suffix}", value, "instructions")
    yield BenchRow(f"{name}_registers{suffix}", max(code.registers for code in codes), "of a thread")
    yield BenchRow(f"{name}_blocks_per_multiprocessor{suffix}", min(code.blocks_per_multiprocessor() for code in codes), "blocks")
    yield BenchRow(f"{name}_occupancy{suffix}", warps / WARPS_PER_MULTIPROCESSOR, "of 64 warps")
    yield BenchRow(f"{name}_shared_bytes{suffix}", max(code.shared for code in codes), "bytes of a block")
    inner = [code.count("BAR", loop) for code in codes for loop in code.inner_loops()]
    yield BenchRow(f"{name}_barriers_in_inner_loops{suffix}", max(inner, default=0), "barriers")
    yield BenchRow(f"{name}_barriers{suffix}", max(code.count("BAR") for code in codes), "barriers of a cell")
    yield BenchRow(f"{name}_stack_bytes{suffix}", max(code.stack for code in codes), "bytes of a thread")
    yield BenchRow(f"{name}_load_bytes{suffix}", min(code.widest("LDG") for code in codes), "widest load of a thread")
    yield BenchRow(f"{name}_store_bytes{suffix}", min(code.widest("STG") for code in codes), "widest store of a thread")
    yield BenchRow(f"{name}_issue_ms{suffix}", by_issue * 1e3, "ms", by_memory * 1e3)
    yield BenchRow(f"{name}_counted_ms{suffix}", counted * 1e3, "ms", by_memory * 1e3)
    yield BenchRow(f"{name}_counted_gbps{suffix}", values * 2 / counted / 1e9, "GB/s of raw KV", values * 2 / by_memory / 1e9)
    yield BenchRow(f"{name}_over_memory{suffix}", counted / by_memory, "of the memory's time", 1.0)


ROWS_OF_A_KERNEL = 16
ROWS_OF_OTHERS = 9 * 7


def total_work(arguments: BenchArguments) -> float:
    """The work of all rows, in the unit of `work`; for a progress bar."""
    of_depths = 2 * ROWS_OF_A_KERNEL * max(1, sum(depth in arguments.depths for depth in DEPTHS))
    return len(arguments.architectures) * (of_depths + ROWS_OF_OTHERS)


def work(row: BenchRow) -> float:
    return 1.0


def is_shown(row: BenchRow) -> bool:
    return True


def facts(arguments: BenchArguments) -> dict[str, str]:
    import triton

    shape = f"{LLAMA.layers} layers, {LLAMA.kv_heads} KV heads of {LLAMA.head_dim}, bfloat16, {TOKENS} tokens, tiles of {TILE_TOKENS}"
    gpu = f"H200 as {MULTIPROCESSORS} multiprocessors of {SCHEDULERS} schedulers at {CLOCK_HZ / 1e9} GHz, {BYTES_PER_S / 1e12} TB/s"
    return {"kind": "counted from machine code, not measured", "shape": shape, "gpu": gpu, "triton": triton.__version__}
