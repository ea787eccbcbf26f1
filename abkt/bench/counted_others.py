"""The kernels that are counted beside encode and expand (counted.py): the lossless code, the order of passes, raw copies and digests.

Each has a time by issue and a time by memory for the KV of the same prompt, as if it filled the GPU. Loops over escapes run ESCAPES times,
as often as the thread with most escapes has some: 3 % of its 128 values are four, and of 128 threads one has about ten. No unit is taken
to be stored uncoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from abkt.bench.sass import MachineCode
from abkt.codec.cells import Cells

ESCAPES = 10


@dataclass(frozen=True, slots=True)
class Other:
    """A kernel as sass.compiled takes it. values: KV values of a program. moved: bytes read and written for a value. trips: how often the
    first loop without another in it runs, and the second; 0 leaves out what the branch around it skips."""

    name: str
    function: Any
    types: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    values: float
    moved: float
    trips: tuple[int, ...] = ()

    def per_value(self, code: MachineCode) -> float:
        """Instructions a value, as in counted.py. Raises ValueError if the code has other loops than those whose trips are known."""
        loops, left, runs = code.inner_loops(), self.trips[1] if len(self.trips) > 1 else 0, list(self.trips[:1])
        if min(len(loops), 2) != len(self.trips):
            raise ValueError(f"counted: {self.name} has {len(loops)} loops in its machine code, which is not what is known of it")
        for loop in loops[1:]:  # the compiler may unroll the second loop, and add one for what is left
            of_turn = max(1, code.count("STG", loop))
            runs.append(left // of_turn)
            left %= of_turn
        skipped = [code.skipped_with(loop) for loop, trips in zip(loops, runs, strict=True) if not trips]
        total = 0
        for instruction in code.code:
            if not any(region.holds(instruction.at) for region in skipped):
                total += next((trips for loop, trips in zip(loops, runs, strict=True) if loop.holds(instruction.at)), 1)
        return total * 32 * code.warps / self.values


def others(cells: Cells) -> list[Other]:
    """All of them, for full tiles of `cells` in bfloat16. Copies move whole (block, layer, kind) pieces."""
    from abkt.codec import order_kernels
    from abkt.codec.lossless import kernels as lossless
    from abkt.codec.lossless.launch import constants as lossless_constants
    from abkt.codec.lossless.oracle import UnitLayout
    from abkt.kv import copy_kernels
    from abkt.transfer.device import digest_kernels

    layout = UnitLayout(torch.bfloat16, 16_384, 3)
    options: dict[str, Any] = dict(lossless_constants(layout))
    fixed = {name: options.pop(name) for name in list(options) if name.isupper()}
    words = dict.fromkeys(("data", "fixed", "slots", "tails"), "*i32")
    units = {**words, "starts": "*i64", "bases": "*u8", "sizes": "*i64", "ends": "*i64", "damaged": "*u8"}
    coded = layout.fixed_bytes / layout.n + 0.03  # bytes a value: the fixed part, and 3 % of escapes of a byte each
    spare = layout.raw_bytes - layout.fixed_bytes
    per_cell = float(cells.values.mean())
    order = {
        "errors": "*fp32", "sizes": "*i64", "shares": "*fp64", "weights": "*fp64", "classes": "*u8", "keys": "*i32", "bytes_of_bin": "*i64",
        "ends": "*i64", "begins": "*i32", "numbers": "*i64", "bands": "*u8", "bytes_of_band": "*i64", "removed": "*fp64",
    }  # fmt: skip
    of_pass = {"PASSES": cells.passes, "CELLS": order_kernels.CELLS}
    passes, block = cells.passes, order_kernels.CELLS * per_cell
    copied: dict[str, Any] = dict(copy_kernels.constants(cells.layout.block_tokens * cells.layout.model.head_dim * 16, copy_kernels.WIDEST))
    lanes = {name: copied.pop(name) for name in ("VECTOR", "LANES")}
    moves = {"source": "*i32", "destination": "*i32", "source_blocks": "*i64", "destination_blocks": "*i64"}
    gathered, scattered = {**lanes, "destination_blocks": None}, {**lanes, "source_blocks": None}
    of_copy, step = lanes["LANES"] * 8.0, digest_kernels.STEP
    return [
        Other("lossless_encode", lossless.encode_units, units, fixed, options, layout.n, 2 + coded, (0, ESCAPES)),
        Other("lossless_tails", lossless.gather_tails, units, {"FIXED": layout.fixed_bytes, "SPARE": spare, "ROWS": 128}, {"num_warps": 4}, layout.n, 0.06, (1,)),  # noqa: E501
        Other("lossless_decode", lossless.decode_units, units, fixed, options, layout.n, 2 + coded, (0, ESCAPES)),
        Other("order_slopes", order_kernels.count_slopes, order, of_pass, {}, block, (12 * (passes + 1) + 12 * passes + 9) / per_cell),
        Other("order_bands", order_kernels.fill_bands, order, of_pass, {}, block, (12 * (passes + 1) + 13 * passes + 8) / per_cell),
        Other("gather", copy_kernels.move_blocks, moves, gathered, copied, of_copy, 4.0),
        Other("scatter", copy_kernels.move_blocks, moves, scattered, copied, of_copy, 4.0),
        Other("peer_copy", copy_kernels.move_blocks, moves, lanes, copied, of_copy, 4.0),
        Other("digest", digest_kernels.add_sums, {"table": "*i64", "found": "*i64"}, {"STEP": step}, {"num_warps": digest_kernels.WARPS}, step * 4.0, 2.0),  # noqa: E501
    ]  # fmt: skip
