"""The Profile of a device, measured without a cluster: model layers with random weights, the codec's kernels, copies between two pools.

Latency does not depend on the weights, so one layer is measured: its matrices and its attention over KV. The result is multiplied by the
number of layers, and the head is added. On a GPU, decode runs as a CUDA graph, as in serving engines. Not measured: sampling, scheduling,
tensor parallelism, the gaps between phases. Rate curves need the KV of a real model, so the profile has none, and the simulator reads
curves from a file. The lossless share is measured on normally distributed values, and the fingerprint says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import numpy as np
import torch
import torch.nn.functional as F

from abkt.bench.case import coder
from abkt.bench.timing import medians
from abkt.codec.codec import Codec
from abkt.kv.pool import Pool
from abkt.measure import lossless
from abkt.measure.shape import DecoderShape
from abkt.profile.fingerprint import fingerprint
from abkt.profile.schema import DEPTHS_BITS, Profile, Sample, fit_stages
from abkt.spec import KVLayout

BLOCK_TOKENS = 16


class Layer:
    """One layer and the head, with random weights on a device."""

    def __init__(self, shape: DecoderShape, device: torch.device) -> None:
        def weight(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, device=device, dtype=torch.bfloat16) / math.sqrt(columns)

        self.shape, self.device = shape, device
        self.qkv = weight((shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.hidden)
        self.out = weight(shape.hidden, shape.heads * shape.head_dim)
        self.gate_up, self.down = weight(2 * shape.intermediate, shape.hidden), weight(shape.hidden, shape.intermediate)
        self.head = weight(shape.vocab, shape.hidden)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None, values: torch.Tensor | None = None) -> torch.Tensor:
        """x: [batch, tokens, hidden]. keys, values: [batch, kv_heads, context, head_dim], the KV to attend to (None: x itself)."""
        s = self.shape
        q, k, v = F.linear(F.rms_norm(x, (s.hidden,)), self.qkv).split([s.heads * s.head_dim, *[s.kv_heads * s.head_dim] * 2], -1)
        q, k, v = (part.unflatten(-1, (-1, s.head_dim)).transpose(1, 2) for part in (q, k, v))
        causal = keys is None
        attended = F.scaled_dot_product_attention(
            q, k if keys is None else keys, v if values is None else values, is_causal=causal, enable_gqa=True
        )
        x = x + F.linear(attended.transpose(1, 2).flatten(2), self.out)
        gate, up = F.linear(F.rms_norm(x, (s.hidden,)), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the last token, [batch, vocab]."""
        return F.linear(x[:, -1], self.head)


def measure(shape: DecoderShape, device: torch.device, longest: int, repeats: int, progress: Callable[[str], None]) -> Profile:
    """Measure a device.

    Parameters
    ----------
    shape : the model whose layer is measured.
    device : cpu (one thread) or cuda.
    longest : number of tokens of the longest prompt.
    repeats : number of timed rounds; the result is their median.
    progress : called with the name of each stage as it begins.

    Raises
    ------
    ValueError : if the device does not exist.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no GPU here; device=cpu measures this machine's cores")
    lengths = sorted({int(n) // BLOCK_TOKENS * BLOCK_TOKENS for n in np.geomspace(min(256, longest // 4), longest, 8)})
    samples: dict[str, list[Sample]] = {}
    shares: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if device.type == "cpu" else threads)
    try:
        with torch.inference_mode():
            for name, taken in (
                ("prefill and decode", _compute(shape, device, lengths, repeats)),
                ("codec", _codec(shape, device, lengths, repeats, shares)),
                ("transport", _transport(shape, device, lengths[-1], repeats)),
            ):
                progress(name)
                for stage, variables, seconds in taken:
                    samples.setdefault(stage, []).append((variables, max(seconds, 1e-9)))
    finally:
        torch.set_num_threads(threads)
    about = {
        **fingerprint(),
        "weights": "random, one layer for all",
        "transport": f"runs between two pools of one {device.type} device",
        "lossless": "share of normal values",
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Profile(shape.spec, fit_stages(samples), (), about, created=created, lossless_share=max(shares))


def _compute(shape: DecoderShape, device: torch.device, lengths: list[int], repeats: int) -> Iterator[tuple[str, dict[str, float], float]]:
    layer = Layer(shape, device)
    for tokens in lengths:
        x = torch.randn(1, tokens, shape.hidden, device=device, dtype=torch.bfloat16)
        taken = _seconds({"layer": lambda x=x: layer.forward(x), "head": lambda x=x: layer.predict(x)}, device, repeats)  # type: ignore[misc]
        yield "prefill", {"tokens": float(tokens)}, taken["layer"] * shape.layers + taken["head"]
    for batch in (1, 8, 32, 128):
        for context in lengths[::2]:
            if batch * context > 4 * lengths[-1]:
                continue
            x = torch.randn(batch, 1, shape.hidden, device=device, dtype=torch.bfloat16)
            keys = torch.randn(batch, shape.kv_heads, context, shape.head_dim, device=device, dtype=torch.bfloat16)
            functions: dict[str, Callable[[], object]] = {
                "layer": lambda x=x, keys=keys: layer.forward(x, keys, keys),  # type: ignore[misc]
                "head": lambda x=x: layer.predict(x),  # type: ignore[misc]
            }
            taken = _seconds(functions, device, repeats, graphs=True)
            yield "decode", {"batch": float(batch), "context": float(batch * context)}, taken["layer"] * shape.layers + taken["head"]


def _codec(
    shape: DecoderShape, device: torch.device, lengths: list[int], repeats: int, shares: list[float]
) -> Iterator[tuple[str, dict[str, float], float]]:
    """Every codec stage by prompt length: the kernels on a GPU, the compiled path on a CPU. The lossless shares are added to `shares`."""
    for tokens in lengths:
        layout = KVLayout(shape.spec, tokens // BLOCK_TOKENS + 4, BLOCK_TOKENS)
        pool, other = Pool(layout, device), Pool(layout, device)
        for block in pool.data:
            block.normal_()
        table = torch.randperm(layout.blocks, generator=torch.Generator().manual_seed(tokens))[: tokens // BLOCK_TOKENS + 1].tolist()
        blocks = torch.tensor(table, device=device)
        staged = pool.data[blocks]
        functions: dict[str, Callable[[], object]] = {
            "encode/raw": lambda p=pool, b=blocks, s=staged: torch.index_select(p.data, 0, b, out=s),  # type: ignore[misc]
            "expand/raw": lambda p=other, b=blocks, s=staged: p.data.index_copy_(0, b, s),  # type: ignore[misc]
        }
        codec = Codec(layout)
        for depth in DEPTHS_BITS:
            cells = codec.cells(tokens + 1, depth)
            functions[f"encode/{depth}"], functions[f"expand/{depth}"] = coder(codec, cells, pool, other, cells.coded_table(table))
        functions["encode/lossless"], functions["expand/lossless"], share = lossless.coder(pool, other, table, tokens + 1)
        shares.append(share)
        for stage, seconds in _seconds(functions, device, repeats).items():
            yield stage, {"tokens": float(tokens)}, seconds


def _transport(shape: DecoderShape, device: torch.device, longest: int, repeats: int) -> Iterator[tuple[str, dict[str, float], float]]:
    layout = KVLayout(shape.spec, longest // BLOCK_TOKENS, BLOCK_TOKENS)
    source, target = Pool(layout, device), Pool(layout, device)
    for blocks in sorted({max(1, layout.blocks // share) for share in (64, 16, 4, 1)}):
        for run in sorted({1, min(8, blocks), blocks}):
            starts = range(0, blocks, run)

            def copy(starts: range = starts, run: int = run, blocks: int = blocks) -> None:
                for start in starts:
                    target.data[start : min(start + run, blocks)].copy_(source.data[start : min(start + run, blocks)])

            taken = _seconds({"copy": copy}, device, repeats)
            yield "transport", {"calls": float(len(starts)), "bytes": float(blocks * layout.block_bytes)}, taken["copy"]


def _seconds(functions: dict[str, Callable[[], object]], device: torch.device, repeats: int, graphs: bool = False) -> dict[str, float]:
    if graphs and device.type == "cuda":
        from abkt.codec.fixed.enqueue import captured

        functions = {name: captured(function) for name, function in functions.items()}
    return medians(functions, device, repeats)
