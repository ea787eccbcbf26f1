"""Raw blocks gathered from a pool and scattered into one, beside a plain copy of the same bytes, on the pools' device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from abkt.bench.rows import BenchRow
from abkt.bench.timing import medians
from abkt.kv import copy
from abkt.kv.pool import Pool


def rows(pool: Pool, other: Pool, table: list[int], name: str, repeats: int) -> Iterator[BenchRow]:
    """Rows `gather` and `scatter`, in ns/token: the blocks of a table, from `pool` and into `other`; and `…_gbps`, in GB/s."""
    device, layout = pool.data.device, pool.layout
    blocks, source = copy.table_on(device, table), pool.data[: len(table)]
    staged = torch.empty_like(source)
    taken = medians(
        {
            "copy": lambda: staged.copy_(source),
            "gather": lambda: copy.enqueue_gather(pool, blocks, staged),
            "scatter": lambda: copy.enqueue_scatter(staged, other, blocks),
        },
        device,
        repeats,
    )
    plain, tokens, moved = taken.pop("copy"), len(table) * layout.block_tokens, len(table) * layout.block_bytes
    for verb, seconds in taken.items():
        yield BenchRow(f"{verb}/{name}", seconds / tokens * 1e9, "ns/token", plain / tokens * 1e9)
        yield BenchRow(f"{verb}_gbps/{name}", moved / seconds / 1e9, "GB/s of raw KV", moved / plain / 1e9)


def check(pool: Pool, table: list[int]) -> None:
    """Raises ValueError if a gather, or a scatter into another pool, does not copy the blocks of the table."""
    whole, after = pool.data, Pool(pool.layout, pool.data.device)
    staged = torch.empty_like(whole[: len(table)])
    copy.gather(pool, table, staged)
    if not torch.equal(staged, whole[table]):
        raise ValueError(f"gather of {len(table)} blocks on {whole.device}: the result is not the blocks of the table")
    copy.scatter(staged, after, table[::-1])
    if not torch.equal(after.data[table[::-1]], staged) or int(after.data.flatten(1).any(1).sum()) > len(table):
        raise ValueError(f"scatter of {len(table)} blocks on {whole.device}: the blocks are not where the table says")
