"""The Triton kernels as a path through the quantiser: tensors to the device, one launch for K and one for V, results back.

Not here yet: CUDA graphs, one asynchronous copy per layer group, ordering and checksums on the GPU.
"""

from __future__ import annotations

import numpy as np
import torch
import triton

from abkt.codec import backend, fast
from abkt.codec.backend import Arrived, Coded
from abkt.codec.cells import Cells
from abkt.codec.kernels import encode_cells, expand_cells
from abkt.codec.quantize import LIMIT


class Kernels:
    def describe(self) -> str:
        return "triton"

    def encode(self, data: torch.Tensor, blocks: list[int], cells: Cells, centres: np.ndarray) -> Coded:
        layers, _, heads, tiles = cells.shape
        dim, device = cells.layout.model.head_dim, data.device
        body = torch.zeros(cells.body_bytes, dtype=torch.uint8, device=device)
        errors = torch.zeros(cells.passes + 1, cells.count, device=device)
        exact = torch.zeros(cells.count, dtype=torch.uint8, device=device)
        sums, spreads = torch.zeros(cells.count, dim, device=device), torch.zeros(cells.count, device=device)
        inputs = [_on(part, device) for part in (blocks, centres, cells.offsets)]
        for key in (True, False) if cells.count else ():
            outputs = (body, errors, exact, sums, spreads)
            launch = encode_cells[(layers * heads * tiles,)]
            launch(data, *inputs, *outputs, *_sizes(cells), KEY=key, BOUND=LIMIT[data.dtype], **constants(cells))
        coded_exactly = exact.bool()
        deviation = _deviation(sums.double(), spreads.double(), coded_exactly, cells)
        return Coded(body.cpu(), errors.double().cpu().numpy(), coded_exactly.cpu().numpy(), deviation.cpu().numpy())

    def expand(self, arrived: Arrived, data: torch.Tensor, blocks: list[int], cells: Cells) -> None:
        layers, _, heads, tiles = cells.shape
        device = data.device
        arguments = (
            *(_on(part, device) for part in (blocks, arrived.centres, arrived.offsets, arrived.wire, arrived.present)),
            *_sizes(cells),
        )
        for key in (True, False):
            expand_cells[(layers * heads * tiles,)](data, *arguments, KEY=key, **constants(cells))

    def checksums(self, buffer: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        compiled = fast.load()
        return compiled.checksums(buffer, offsets, sizes) if compiled else backend.checksums(buffer, offsets, sizes)


def constants(cells: Cells) -> dict[str, int]:
    """Compile-time arguments and launch options of both kernels."""
    dim, tile = cells.layout.model.head_dim, cells.tile_tokens
    return {
        "PASSES": cells.passes,
        "TILE": tile,
        "BLOCK": cells.layout.block_tokens,
        "DIM": dim,
        "ROWS": triton.next_power_of_2(-(-tile // 4)),
        "COLS": triton.next_power_of_2(dim),
        "num_warps": 8,
        "enable_fp_fusion": True,  # harmless: the products that are added to offsets are exact
        # The depth-2 encoder of K would spill two registers at the 128 that two programs a multiprocessor leave it.
        **({"maxnreg": 160} if cells.passes == 1 else {}),
    }


def _sizes(cells: Cells) -> tuple[int, int, int, int, int]:
    layers, _, heads, tiles = cells.shape
    return cells.count, layers * 2 * heads, heads, tiles, cells.coded_blocks * cells.layout.block_tokens


def _on(values: np.ndarray | list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values).to(device)


def _deviation(sums: torch.Tensor, spreads: torch.Tensor, exact: torch.Tensor, cells: Cells) -> torch.Tensor:
    """Squared deviation from channel means over all tiles of a (layer, K|V, head): [layers, 2, heads]. sums: [cells, head_dim]."""
    dim = sums.shape[1]
    lengths = torch.tensor(cells.tile_lengths, dtype=torch.float64, device=sums.device)
    counted = (lengths * ~exact.view(cells.shape))[..., None]  # tokens of each tile, 0 where the cell is exact
    tile_means = sums.view(*cells.shape, dim) / lengths[:, None]
    means = (tile_means * counted).sum(3, keepdim=True) / counted.sum(3, keepdim=True).clamp_min(1)
    between = (counted * (tile_means - means).square()).sum((3, 4))
    return between + (spreads.view(cells.shape) * ~exact.view(cells.shape)).sum(3)
