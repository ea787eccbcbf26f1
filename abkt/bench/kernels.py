"""The codec's kernels, beside a plain copy of the same bytes in the same run, after a check of their values against the oracle.

Rows for each length, block size and depth: `encode`, `expand` (ns/token, and as `…_gbps` GB/s of raw KV), beside those of the copy;
`order`, the time to order the passes; and `stream`, the time of a whole `Codec.encode`. Rows for each length and block size: `gather`,
`scatter` of raw blocks, and the rows of stages.py. Summary rows: `encode_4bit_over_copy`, `decode_4bit_over_copy`, at the smallest length
of at least 16 MiB. There the installed peers run too, on a CPU (peers.py), and the entropy coder at a length of its own (entropy.py). On a
CPU everything runs in one thread. On a GPU the times are those of the work that the codec enqueues, except for `stream`, which waits for
the GPU.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch

from abkt.bench import copies, entropy, peers, stages
from abkt.bench.arguments import BenchArguments
from abkt.bench.case import BenchCase, coder
from abkt.bench.rows import BenchRow
from abkt.bench.timing import medians
from abkt.codec.cells import Cells
from abkt.codec.fixed.oracle import OracleBackend
from abkt.codec.order import slope_bands, weighted_distortion
from abkt.profile.fingerprint import cpu_name

SUMMARY_BYTES = 16 * 2**20
SUMMARY_DEPTH = 4
ROWS_OF_A_DEPTH, ROWS_OF_A_CASE = 6, 10
ENTROPY_TOKENS = 1_024  # the entropy coder is more than ten times slower than the fixed one


def rows(arguments: BenchArguments, about: dict[str, str]) -> Iterator[BenchRow]:
    """All rows, as they are measured; facts about the peers are added to `about`. Raises ValueError if the device is missing, or if its
    values differ from the oracle's."""
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no GPU here; device=cpu measures the compiled backend")
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else threads)
    try:
        yield BenchRow("values_equal_to_oracle", float(check(arguments)), "cells")
        summary = None
        for tokens, block_tokens in cases(arguments):
            case = BenchCase(arguments, tokens, block_tokens)
            taken = yield from measured(case, arguments, f"{tokens}x{block_tokens}", device)
            yield from copies.rows(case.pool, case.other, case.table, f"{tokens}x{block_tokens}", arguments.repeats)
            yield from stages.rows(case, f"{tokens}x{block_tokens}", arguments.repeats)
            if summary is None and case.raw_bytes >= SUMMARY_BYTES and SUMMARY_DEPTH in arguments.depths:
                summary = taken
                if device.type == "cpu":
                    yield from entropy.rows(
                        BenchCase(arguments, ENTROPY_TOKENS, block_tokens), f"{ENTROPY_TOKENS}x{block_tokens}", arguments.repeats
                    )
                yield from peers.rows(case, arguments, about)
        if summary:
            yield BenchRow(f"encode_{SUMMARY_DEPTH}bit_over_copy", summary["copy"] / summary[f"encode {SUMMARY_DEPTH}"], "of copy", 1.0)
            yield BenchRow(f"decode_{SUMMARY_DEPTH}bit_over_copy", summary["copy"] / summary[f"expand {SUMMARY_DEPTH}"], "of copy", 1.0)
    finally:
        torch.set_num_threads(threads)


def cases(arguments: BenchArguments) -> list[tuple[int, int]]:
    """(tokens, tokens of a block) of each case; without those that have no tokens between the edges."""
    found = [(tokens, arguments.blocks[0]) for tokens in arguments.tokens]
    found += [(arguments.tokens[len(arguments.tokens) // 2], block) for block in arguments.blocks[1:]]
    return [(tokens, block) for tokens, block in found if tokens > 2 * block]


def total_work(arguments: BenchArguments) -> float:
    """The work of all rows, in the unit of `work`; for a progress bar."""
    return sum(tokens for tokens, _ in cases(arguments)) * (ROWS_OF_A_DEPTH * len(arguments.depths) + ROWS_OF_A_CASE) + 1.0


def work(row: BenchRow) -> float:
    """The tokens of the row's case: rows of long prompts take longer."""
    size = row.name.rpartition("/")[2].partition("x")[0]
    return float(size) if size.isdigit() else 0.0


def check(arguments: BenchArguments) -> int:
    """Check the device against the oracle on a short sequence, at all depths. Returns the number of cells. Raises ValueError if any
    differs."""
    case, oracle, count = BenchCase(arguments, 77 + 2 * arguments.blocks[0], arguments.blocks[0]), OracleBackend(), 0
    copies.check(case.pool, case.table)
    for depth in arguments.depths:
        cells = case.cells(depth)
        ours, theirs = case.encode(cells), case.encode(cells, oracle)
        if not np.array_equal(ours.classes, theirs.classes) or not torch.equal(ours.body.cpu(), theirs.body):
            raise ValueError(f"{case.backend.describe()}: codes of depth {depth} differ from the oracle's")
        arrived = case.arrived(cells, theirs)
        if not torch.equal(case.expand(cells, arrived).clone(), case.expand(cells, arrived, oracle)):
            raise ValueError(f"{case.backend.describe()}: values expanded from depth {depth} differ from the oracle's")
        count += cells.count
    return count


def measured(case: BenchCase, arguments: BenchArguments, name: str, device: torch.device) -> Generator[BenchRow, None, dict[str, float]]:
    """Yield the rows of one case. Returns the seconds of each timed function, by name."""
    source = case.pool.data[1 : 1 + len(case.table)]
    target = torch.empty_like(source)
    share = case.tokens / (len(case.table) * case.layout.block_tokens)
    every: dict[str, float] = {}
    for depth in arguments.depths:
        cells = case.cells(depth)
        encode, expand = coder(case.codec, cells, case.pool, case.other, cells.coded_table(case.table))
        functions: dict[str, Callable[[], object]] = {
            "copy": lambda: target.copy_(source),
            f"encode {depth}": encode,
            f"expand {depth}": expand,
            f"order {depth}": orderer(case, cells),
            f"stream {depth}": lambda depth=depth: case.codec.encode(case.pool, case.table, case.tokens, depth),  # type: ignore[misc]
        }
        taken = medians(functions, device, arguments.repeats)
        copy = taken.pop("copy") * share
        every["copy"] = min(copy, every.get("copy", copy))
        for what, seconds in taken.items():
            every[what] = seconds
            verb, bits = what.split()
            yield BenchRow(f"{verb}_{bits}bit/{name}", seconds / case.tokens * 1e9, "ns/token", copy / case.tokens * 1e9)
            if verb in ("encode", "expand"):
                yield BenchRow(
                    f"{verb}_{bits}bit_gbps/{name}", case.raw_bytes / seconds / 1e9, "GB/s of raw KV", case.raw_bytes / copy / 1e9
                )
    return every


def orderer(case: BenchCase, cells: Cells) -> Callable[[], object]:
    """A function that orders the passes of an encode, on the device of its report."""
    coded = case.encode(cells)
    if case.pool.data.device.type == "cpu":
        return lambda: slope_bands(cells.sizes, weighted_distortion(coded.errors, coded.deviation, None, cells))
    from abkt.codec.fixed.enqueue import Report
    from abkt.codec.order_kernels import Ordering

    report, ordering = Report.of(cells, case.pool.data.device), Ordering(cells, case.pool.data.device)
    for to, given in ((report.errors, coded.errors), (report.deviation, coded.deviation), (report.classes, coded.classes)):
        to.copy_(torch.from_numpy(given).view(to.shape))
    return lambda: ordering.enqueue(report)


def is_shown(row: BenchRow) -> bool:
    """Whether a row is shown in the table on the terminal."""
    return "gbps" in row.name or row.unit in ("of copy", "cells") or "peer" in row.name


def facts(arguments: BenchArguments) -> dict[str, str]:
    gpu = torch.cuda.get_device_name(0) if arguments.device == "cuda" else "none"
    case = BenchCase(arguments, 3 * arguments.blocks[0], arguments.blocks[0])
    shape = f"{case.layout.model.layers} layers, {arguments.kv_heads} KV heads of {arguments.head_dim}, bfloat16"
    path = case.backend.describe()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"cpu": cpu_name(), "gpu": gpu, "path": path, "shape": shape, "repeats": str(arguments.repeats), **versions}
