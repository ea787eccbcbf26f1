"""The codec's kernels against a plain copy of the same bytes in the same run, after a check of their values against the oracle.

Rows: `encode`, `expand` (ns/token, and as `…_gbps` GB/s of raw KV) for each length, block size and depth, beside the copy's; `order` and
`stream`, what ordering costs and what `Codec.encode` takes as a whole; `gather`, `scatter` of raw blocks for each length and block size;
and the summary rows `encode_4bit_over_copy`, `decode_4bit_over_copy` at the smallest length of at least 16 MiB. On a CPU everything runs
in one thread.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch

from abkt.bench import copies
from abkt.bench.arguments import Arguments
from abkt.bench.rows import Row
from abkt.bench.timing import medians
from abkt.codec.backend import Arrived, Backend, Coded
from abkt.codec.cells import Cells
from abkt.codec.centre import value_centres
from abkt.codec.codec import Codec
from abkt.codec.oracle import Oracle
from abkt.codec.order import slope_bands, weighted_distortion
from abkt.kv.pool import Pool
from abkt.profile.fingerprint import cpu_name
from abkt.spec import KVLayout, ModelSpec

TILE_TOKENS = 128
SUMMARY_BYTES = 16 * 2**20
SUMMARY_DEPTH = 4


class Case:
    """Synthetic KV of one length in scattered blocks, and all that the kernels need to code it to one depth."""

    def __init__(self, arguments: Arguments, tokens: int, block_tokens: int) -> None:
        on_gpu = arguments.device == "cuda"
        spec = ModelSpec("bench", arguments.layers or (32 if on_gpu else 1), arguments.kv_heads, arguments.head_dim)
        blocks = -(-tokens // block_tokens)
        self.layout = KVLayout(spec, blocks + 2, block_tokens)
        self.tokens, self.table = tokens, (torch.randperm(blocks, generator=torch.Generator().manual_seed(tokens)) + 1).tolist()
        self.pool, self.other = Pool(self.layout, arguments.device), Pool(self.layout, arguments.device)
        for block in self.pool.data:  # one by one: no second copy of a large pool in float32
            block.normal_().mul_(torch.linspace(0.5, 2, arguments.head_dim, device=block.device)).add_(1)
        self.codec = Codec(self.layout, tile_tokens=max(TILE_TOKENS, block_tokens))
        self.backend = self.codec.backend_on(self.pool.data.device)

    @property
    def raw_bytes(self) -> int:
        return self.tokens * self.layout.model.kv_bytes_per_token

    def cells(self, depth_bits: int) -> Cells:
        return Cells(self.layout, self.tokens, self.codec.tile_tokens, depth_bits)

    def encode(self, cells: Cells, backend: Backend | None = None) -> Coded:
        blocks = cells.coded_table(self.table)
        return (backend or self.backend).encode(self.pool.data, blocks, cells, value_centres(self.pool.data, blocks, cells))

    def arrived(self, cells: Cells, coded: Coded) -> Arrived:
        present = np.full(cells.count, cells.passes, dtype=np.int8)
        centres = value_centres(self.pool.data, cells.coded_table(self.table), cells)
        return Arrived(coded.body.cpu().numpy(), cells.offsets, present, coded.forms, centres)

    def expand(self, cells: Cells, arrived: Arrived, backend: Backend | None = None) -> torch.Tensor:
        (backend or self.backend).expand(arrived, self.other.data, cells.coded_table(self.table), cells)
        return self.other.data


def rows(arguments: Arguments) -> Iterator[Row]:
    """All rows, as they are measured. Raises ValueError where the device is missing, or its values are not the oracle's."""
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no GPU here; device=cpu measures the compiled path")
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else threads)
    try:
        yield Row("values_equal_to_oracle", float(check(arguments)), "cells")
        sweep = [(tokens, arguments.blocks[0]) for tokens in arguments.tokens]
        sweep += [(arguments.tokens[len(arguments.tokens) // 2], block) for block in arguments.blocks[1:]]
        summary = None
        for tokens, block_tokens in sweep:
            if tokens <= 2 * block_tokens:
                continue  # nothing lies between the edges
            case = Case(arguments, tokens, block_tokens)
            taken = yield from measured(case, arguments, f"{tokens}x{block_tokens}", device)
            yield from copies.rows(case.pool, case.other, case.table, f"{tokens}x{block_tokens}", arguments.repeats)
            if summary is None and case.raw_bytes >= SUMMARY_BYTES and SUMMARY_DEPTH in arguments.depths:
                summary = taken
        if summary:
            yield Row(f"encode_{SUMMARY_DEPTH}bit_over_copy", summary["copy"] / summary[f"encode {SUMMARY_DEPTH}"], "of copy", 1.0)
            yield Row(f"decode_{SUMMARY_DEPTH}bit_over_copy", summary["copy"] / summary[f"expand {SUMMARY_DEPTH}"], "of copy", 1.0)
    finally:
        torch.set_num_threads(threads)


def check(arguments: Arguments) -> int:
    """Cells of a short sequence that the device codes and expands to the oracle's bytes, at every depth: all, or ValueError."""
    case, oracle, count = Case(arguments, 77 + 2 * arguments.blocks[0], arguments.blocks[0]), Oracle(), 0
    copies.check(case.pool, case.table)
    for depth in arguments.depths:
        cells = case.cells(depth)
        ours, theirs = case.encode(cells), case.encode(cells, oracle)
        if not np.array_equal(ours.forms, theirs.forms) or not torch.equal(ours.body.cpu(), theirs.body):
            raise ValueError(f"{case.backend.describe()}: codes of depth {depth} differ from the oracle's")
        arrived = case.arrived(cells, theirs)
        if not torch.equal(case.expand(cells, arrived).clone(), case.expand(cells, arrived, oracle)):
            raise ValueError(f"{case.backend.describe()}: values expanded from depth {depth} differ from the oracle's")
        count += cells.count
    return count


def measured(case: Case, arguments: Arguments, name: str, device: torch.device) -> Generator[Row, None, dict[str, float]]:
    """Rows of one case; returns seconds by what was timed."""
    source = case.pool.data[1 : 1 + len(case.table)]
    target = torch.empty_like(source)
    every: dict[str, float] = {}
    for depth in arguments.depths:
        cells = case.cells(depth)
        coded = case.encode(cells)
        arrived, share = case.arrived(cells, coded), case.tokens / (len(case.table) * case.layout.block_tokens)

        def encode(cells: Cells = cells) -> object:
            return case.encode(cells)

        def expand(cells: Cells = cells, arrived: Arrived = arrived) -> object:
            return case.expand(cells, arrived)

        def order(coded: Coded = coded, cells: Cells = cells) -> object:
            return slope_bands(cells.sizes, weighted_distortion(coded.errors, coded.deviation, None, cells))

        def stream(depth: int = depth) -> object:
            return case.codec.encode(case.pool, case.table, case.tokens, depth)

        functions: dict[str, Callable[[], object]] = {
            "copy": lambda: target.copy_(source),
            f"encode {depth}": encode,
            f"expand {depth}": expand,
            f"order {depth}": order,
            f"stream {depth}": stream,
        }
        taken = medians(functions, device, arguments.repeats)
        copy = taken.pop("copy") * share
        every["copy"] = min(copy, every.get("copy", copy))
        for what, seconds in taken.items():
            every[what] = seconds
            verb, bits = what.split()
            yield Row(f"{verb}_{bits}bit/{name}", seconds / case.tokens * 1e9, "ns/token", copy / case.tokens * 1e9)
            if verb in ("encode", "expand"):
                yield Row(f"{verb}_{bits}bit_gbps/{name}", case.raw_bytes / seconds / 1e9, "GB/s of raw KV", case.raw_bytes / copy / 1e9)
    return every


def facts(arguments: Arguments) -> dict[str, str]:
    gpu = torch.cuda.get_device_name(0) if arguments.device == "cuda" else "none"
    case = Case(arguments, 3 * arguments.blocks[0], arguments.blocks[0])
    shape = f"{case.layout.model.layers} layers, {arguments.kv_heads} KV heads of {arguments.head_dim}, bfloat16"
    path = case.backend.describe()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"cpu": cpu_name(), "gpu": gpu, "path": path, "shape": shape, "repeats": str(arguments.repeats), **versions}
