"""What travels as it is, between a pool and the head of a stream: the exact edges, the statistics behind them, and exact cells."""

from __future__ import annotations

import numpy as np
import torch

from abkt.codec.cells import Cells, aligned
from abkt.codec.header import StreamHeader, edge_bytes, exact_token_bytes, raw_cell_bytes
from abkt.kv.pool import Pool


def edges(pool: Pool, blocks: list[int], cells: Cells, statistics: bytes, levels: np.ndarray | None) -> bytes:
    """The first block and the newest tokens, then what the head says of all cells. levels: as in Header."""
    return _padded(gather(_edge_views(pool, blocks, cells)) + (statistics if cells.count else b""), edge_bytes(cells, levels))


def raw_cells(pool: Pool, blocks: list[int], cells: Cells, exact: np.ndarray) -> bytes:
    return _padded(gather(_raw_views(pool, blocks, cells, exact)), aligned(raw_cell_bytes(cells, exact)))


def centres_of(wire: np.ndarray, header: StreamHeader, dtype: torch.dtype) -> np.ndarray:
    """Centres of V as the head carries them, [layers, heads, channels] float32; no layers where there is no V."""
    layers, kinds, heads, _ = header.cells.shape
    centres = torch.empty(layers if kinds > 1 else 0, heads, header.cells.dim, dtype=dtype)
    _scatter(wire, header.edges_at + exact_token_bytes(header.cells), [centres])
    return centres.float().numpy()


def put_edges(wire: np.ndarray, header: StreamHeader, pool: Pool, blocks: list[int]) -> None:
    _scatter(wire, header.edges_at, _edge_views(pool, blocks, header.cells))


def put_raw_cells(wire: np.ndarray, header: StreamHeader, pool: Pool, blocks: list[int]) -> None:
    _scatter(wire, header.raw_at, _raw_views(pool, blocks, header.cells, header.exact))


def gather(views: list[torch.Tensor]) -> bytes:
    parts = [v.cpu().contiguous().reshape(-1).view(torch.uint8) for v in views if v.numel()]  # an empty view may have strides of 0
    return torch.cat(parts).numpy().tobytes() if parts else b""


def _scatter(wire: np.ndarray, start: int, views: list[torch.Tensor]) -> None:
    for view in views:
        part = torch.empty(view.shape, dtype=view.dtype)
        size = part.numel() * part.element_size()
        part.view(torch.uint8).numpy().reshape(-1)[:] = wire[start : start + size]
        view.copy_(part)
        start += size


def _padded(data: bytes, size: int) -> bytes:
    assert size - 16 < len(data) <= size
    return data.ljust(size, b"\0")


def _edge_views(pool: Pool, blocks: list[int], cells: Cells) -> list[torch.Tensor]:
    last = cells.layout.blocks_for(cells.tokens) - 1
    views = [pool.data[blocks[0], ..., : cells.sink_tokens, :]]
    return [*views, pool.data[blocks[last], ..., : cells.newest_tokens, :]] if last else views


def _raw_views(pool: Pool, blocks: list[int], cells: Cells, exact: np.ndarray) -> list[torch.Tensor]:
    coded = cells.coded_table(blocks)
    parts = pool.data.shape[-1] // cells.dim
    views = []
    for layer, kind, head, tile in (cells.place(int(cell)) for cell in exact):
        columns = slice(head % parts * cells.dim, (head % parts + 1) * cells.dim)
        views += [pool.data[block, layer, kind, head // parts, :, columns] for block in coded[cells.tile_blocks(tile)]]
    return views
