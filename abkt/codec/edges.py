"""KV that travels verbatim, between a pool and the head of a stream: the tokens at both edges of a sequence, and cells that are not
coded."""

from __future__ import annotations

import numpy as np
import torch

from abkt.codec.cells import Cells, aligned
from abkt.codec.header import StreamHeader
from abkt.kv.pool import Pool


def edges(pool: Pool, blocks: list[int], cells: Cells, statistics: bytes) -> bytes:
    """The first block and the newest tokens, then the coder's statistics."""
    return _padded(_gather(_edge_views(pool, blocks, cells)) + statistics)


def verbatim_cells(pool: Pool, blocks: list[int], cells: Cells, verbatim: np.ndarray) -> bytes:
    """The values of the cells whose numbers are `verbatim`."""
    return _padded(_gather(_cell_views(pool, blocks, cells, verbatim)))


def put_edges(wire: np.ndarray, header: StreamHeader, pool: Pool, blocks: list[int]) -> None:
    _scatter(wire, header.edges_at, _edge_views(pool, blocks, header.cells))


def put_verbatim_cells(wire: np.ndarray, header: StreamHeader, pool: Pool, blocks: list[int]) -> None:
    _scatter(wire, header.verbatim_at, _cell_views(pool, blocks, header.cells, header.verbatim))


def _gather(views: list[torch.Tensor]) -> bytes:
    parts = [v.cpu().contiguous().reshape(-1).view(torch.uint8) for v in views if v.numel()]  # an empty view may have strides of 0
    return torch.cat(parts).numpy().tobytes() if parts else b""


def _scatter(wire: np.ndarray, start: int, views: list[torch.Tensor]) -> None:
    for view in views:
        part = torch.empty(view.shape, dtype=view.dtype)
        size = part.numel() * part.element_size()
        part.view(torch.uint8).numpy().reshape(-1)[:] = wire[start : start + size]
        view.copy_(part)
        start += size


def _padded(data: bytes) -> bytes:
    return data.ljust(aligned(len(data)), b"\0")


def _edge_views(pool: Pool, blocks: list[int], cells: Cells) -> list[torch.Tensor]:
    last = cells.layout.blocks_for(cells.tokens) - 1
    views = [pool.data[blocks[0], ..., : cells.sink_tokens, :]]
    return [*views, pool.data[blocks[last], ..., : cells.newest_tokens, :]] if last else views


def _cell_views(pool: Pool, blocks: list[int], cells: Cells, verbatim: np.ndarray) -> list[torch.Tensor]:
    coded = cells.coded_table(blocks)
    parts = pool.data.shape[-1] // cells.dim
    views = []
    for layer, kind, head, tile in (cells.place(int(cell)) for cell in verbatim):
        columns = slice(head % parts * cells.dim, (head % parts + 1) * cells.dim)
        size, length = cells.layout.block_tokens, cells.tile_lengths[tile]
        for i, block in enumerate(coded[cells.tile_blocks(tile)]):
            views.append(pool.data[block, layer, kind, head // parts, : length - i * size, columns])
    return views
