"""The lossless mode on a device, without a cluster: functions that encode and expand a sequence, and its compressed share.

On a CPU the functions code complete messages, as transfers do; on a GPU they run the kernels only. The share depends on the values in the
pool. The pool of `abkt.measure.device` holds normally distributed values, so its share differs from that of a model's KV.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from abkt.kv.pool import Pool

WIDTH = 3  # bits of a code on a GPU; choosing the best width would need a copy to the host
Work = Callable[[], object]


def coder(pool: Pool, other: Pool, table: Sequence[int], tokens: int) -> tuple[Work, Work, float]:
    """(encode from `pool`, expand into `other`, coded bytes / raw bytes). Both functions may be called repeatedly."""
    if pool.data.device.type == "cpu":
        from abkt.codec.lossless import stream as lossless_stream

        message = lossless_stream.encode(pool, table, tokens)
        share = len(message) / (tokens * pool.layout.model.kv_bytes_per_token)
        return lambda: lossless_stream.encode(pool, table, tokens), lambda: lossless_stream.expand(message, other, table), share
    from abkt.codec.lossless.launch import TritonLossless, UnitBuffers
    from abkt.codec.lossless.oracle import UnitLayout

    _, layers, kinds, heads, block_tokens, dim = pool.layout.shape
    n, groups, device = heads * block_tokens * dim, layers * kinds, pool.data.device
    blocks = torch.tensor(list(table), device=device)
    starts = (blocks[:, None] * groups * n + torch.arange(groups, device=device) * n).reshape(-1)
    kernels = TritonLossless()
    buffers = UnitBuffers.of(UnitLayout(pool.dtype, n, WIDTH), kernels.windows(pool.data, starts, n, groups, WIDTH), len(starts))
    kernels.encode_into(buffers, pool.data, starts)
    held = buffers.units()
    share = len(held.body) / (len(starts) * buffers.layout.raw_bytes)
    return lambda: kernels.encode_into(buffers, pool.data, starts), lambda: kernels.decode_into(held, other.data, starts), share
