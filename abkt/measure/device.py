"""The Profile of a device without a cluster: a model's layers with random weights, the codec's kernels, and copies between two pools.

Latency does not depend on weights, so one layer stands for all: its matrices, attention over KV, times the number of layers, plus the
head. On a GPU decode runs as a CUDA graph, as serving engines run it. What this leaves out: sampling, scheduling, tensor parallelism, the
gaps between phases. Rate curves need KV of a real model, so there are none; the model takes those of its own file. The exact mode's share
of the raw bytes is that of normal values, and said to be so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
import torch.nn.functional as F

from abkt.bench.case import coder
from abkt.bench.timing import medians
from abkt.codec.codec import Codec
from abkt.kv.pool import Pool
from abkt.measure import lossless
from abkt.profile.fingerprint import fingerprint
from abkt.profile.schema import Fit, Profile, fit
from abkt.spec import KVLayout, ModelSpec

DEPTHS_BITS = (2, 4, 8)
BLOCK_TOKENS = 16
Sample = tuple[dict[str, float], float]
FEATURES = {"prefill": ("1", "tokens", "tokens*tokens"), "decode": ("1", "batch", "context"), "transport": ("calls", "bytes")}


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama-like model: pre-norm, grouped-query attention, gated MLP, bf16. Llama-3.1-8B unless said otherwise."""

    name: str = "llama-3.1-8b"
    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    intermediate: int = 14_336
    vocab: int = 128_256

    def __post_init__(self) -> None:
        if min(self.layers, self.hidden, self.heads, self.kv_heads, self.head_dim, self.intermediate, self.vocab) < 1:
            raise ValueError(f"model {self.name}: all its sizes must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"model {self.name}: {self.heads} heads do not share {self.kv_heads} KV heads evenly")

    @property
    def spec(self) -> ModelSpec:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        parameters = float(self.layers * (attention + 3 * self.hidden * self.intermediate) + 2 * self.vocab * self.hidden)
        return ModelSpec(self.name, self.layers, self.kv_heads, self.head_dim, "bfloat16", self.hidden, self.heads, parameters, parameters)


class Layer:
    """One layer and the head, with random weights on a device."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        def weight(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, device=device, dtype=torch.bfloat16) / math.sqrt(columns)

        self.shape, self.device = shape, device
        self.qkv = weight((shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.hidden)
        self.out = weight(shape.hidden, shape.heads * shape.head_dim)
        self.gate_up, self.down = weight(2 * shape.intermediate, shape.hidden), weight(shape.hidden, shape.intermediate)
        self.head = weight(shape.vocab, shape.hidden)

    def forward(self, x: torch.Tensor, keys: torch.Tensor | None = None, values: torch.Tensor | None = None) -> torch.Tensor:
        """x [batch, tokens, hidden]. keys, values [batch, kv_heads, context, head_dim]: attended to, or else x attends to itself."""
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
        """The head over the last token, [batch, vocab]."""
        return F.linear(x[:, -1], self.head)


def measure(shape: Shape, device: torch.device, longest: int, repeats: int, progress: Callable[[str], None]) -> Profile:
    """A Profile of prompts up to `longest` tokens. progress: told the name of each stage as it begins. Raises ValueError for a device
    that is not there."""
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
    fits: dict[str, Fit] = {stage: fit(FEATURES.get(stage, ("1", "tokens")), taken) for stage, taken in samples.items()}
    about = {
        **fingerprint(),
        "weights": "random, one layer for all",
        "transport": f"runs between two pools of one {device.type} device",
        "lossless": "share of normal values",
    }
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Profile(shape.spec, fits, (), about, created=created, lossless_share=max(shares))


def _compute(shape: Shape, device: torch.device, lengths: list[int], repeats: int) -> Iterator[tuple[str, dict[str, float], float]]:
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
    shape: Shape, device: torch.device, lengths: list[int], repeats: int, shares: list[float]
) -> Iterator[tuple[str, dict[str, float], float]]:
    """Every stage by the length; on a GPU what it enqueues, on a CPU the compiled path. shares: takes that of the lossless mode."""
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


def _transport(shape: Shape, device: torch.device, longest: int, repeats: int) -> Iterator[tuple[str, dict[str, float], float]]:
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
