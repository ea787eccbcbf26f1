"""CacheGen (SIGCOMM 2024): anchor tokens in 8 bits, and deltas to them in bins that are wider in later layers, with a table per channel.

The first token of every group of 10 tokens is the anchor, quantised per head as in uniform.py; the other tokens are coded as deltas to the
decoded anchor. Deltas are entropy-coded. The bin width of a (layer, kind) is FACTORS times the deltas' root mean square. It is twice as
wide for V as for K, and wider where 255 bins would not reach. Tables are not sent. A channel sends one byte, its spread in half-octaves of
a bin, which picks one of 32 fixed tables (bins of a logistic distribution). The paper profiles channels offline, per model, so there
neither tables nor profiles cost bytes. Assumptions: FACTORS and the factor 2 are ours, after the paper's 0.5, 1, 1.5 by thirds of the
layers; a latent (MLA) is coded as K.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.baselines.uniform import put_tokens, take_tokens
from abkt.codec.rans import compiled as rans_fast
from abkt.codec.rans.oracle import shares_of

FACTORS = (0.5, 1.0, 1.5)  # bin widths of V over the deltas' root mean square, by thirds of the layers
CLASSES = 32
REACH = 127


def tables(radius: int) -> np.ndarray:
    """The fixed tables: shares [CLASSES, 2 * radius + 1] uint16. Class c has a standard deviation of 2**((c - 12) / 2) bins."""
    scale = 2.0 ** ((np.arange(CLASSES) - 12) / 2) * 3**0.5 / np.pi
    edges = np.arange(-radius, radius + 2) - 0.5
    below = 0.5 + 0.5 * np.tanh(edges / scale[:, None] / 2)
    return shares_of(np.maximum(np.diff(below, axis=1), 1e-9))


@dataclass(frozen=True)
class CacheGenCodec(MessageBaseline):
    """group: number of tokens that share an anchor. coarseness: multiplies FACTORS, and stands for the paper's levels of quality.
    factors: for each layer those of K and V, in place of FACTORS (calibrated/cachegen.py fits them)."""

    name: str = "cachegen"
    group: int = 10
    coarseness: float = 1.0
    factors: tuple[tuple[float, float], ...] = ()

    def factor(self, layer: int, layers: int, kind: int) -> float:
        """Bin width in units of the deltas' root mean square."""
        if self.factors:
            return self.coarseness * self.factors[layer][kind]
        return self.coarseness * FACTORS[layer * 3 // layers] * (1.0 if kind else 0.5)

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        if not x.isfinite().all():
            raise ValueError("KV is not finite; it cannot be coded in CacheGen's bins")
        if self.factors and (len(self.factors), 2) != tuple(x.shape[:2]):
            raise ValueError(f"KV of (layers, kinds) = {tuple(x.shape[:2])} does not fit {self.name}, which has {len(self.factors)} layers")
        anchors, delta = anchored(x, self.group)
        rest = _places(x.shape[3], self.group)[1]
        if not delta.numel():
            return anchors
        parts = anchors
        for layer, kind in np.ndindex(x.shape[:2]):
            d = delta[layer, kind]
            width = max(self.factor(layer, x.shape[0], kind) * float(d.square().mean().sqrt()), float(d.abs().max()) / REACH)
            width = float(np.float32(width)) or 1.0
            codes = (d / width).round().clamp(-REACH, REACH)
            radius = int(codes.abs().max())
            spread = codes.square().mean(1).clamp(min=2.0**-12).sqrt()
            classes = (spread.log2() * 2 + 12).round().clamp(0, CLASSES - 1).to(torch.uint8)  # [heads, dim]
            symbols = (codes + radius).to(torch.uint8).flatten(1).numpy()
            streams = rans_fast.encode(symbols, _contexts(classes, len(rest)), tables(radius))
            sizes = torch.tensor([len(s) for s in streams], dtype=torch.int32)
            parts += [torch.tensor([width]), torch.tensor([radius], dtype=torch.uint8), classes, sizes, *streams]
        return parts

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        layers, kinds, heads, tokens, dim = shape
        anchors = take_tokens(body, 8, (layers, kinds, heads, -(-tokens // self.group), dim))
        at, rest = _places(tokens, self.group)
        out = torch.empty(shape)
        out[..., :: self.group, :] = anchors
        for layer, kind in np.ndindex(layers, kinds) if len(rest) else ():
            width, radius = body.take(torch.float32, 1), int(body.take(torch.uint8, 1))
            classes, sizes = body.take(torch.uint8, heads, dim), body.take(torch.int32, heads).tolist()
            if radius > REACH or int(classes.max()) >= CLASSES or min(sizes) < 0:
                raise ValueError("message is damaged: a radius, a class or a size is out of range")
            streams = [body.take_bytes(size) for size in sizes]
            symbols = rans_fast.decode(streams, len(rest) * dim, _contexts(classes, len(rest)), tables(radius))
            delta = (torch.from_numpy(symbols).float() - radius).reshape(heads, len(rest), dim) * width
            out[layer, kind][:, rest] = anchors[layer, kind][:, at] + delta
        return out


def anchored(x: torch.Tensor, group: int) -> tuple[list[torch.Tensor | bytes], torch.Tensor]:
    """The arrays of the anchors, and the other tokens' deltas to the decoded anchors, [layers, kinds, heads, others, head_dim]."""
    anchors = put_tokens(x[..., ::group, :], 8)
    at, rest = _places(x.shape[3], group)
    shape = (*x.shape[:3], -(-x.shape[3] // group), x.shape[4])
    decoded = take_tokens(Body(b"".join(np.asarray(p).tobytes() for p in anchors)), 8, shape)
    return anchors, x[..., rest, :].float() - decoded[..., at, :]


def _places(tokens: int, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each token that is not an anchor: the number of its anchor, and its own number."""
    every = torch.arange(tokens)
    rest = every[every % group != 0]
    return rest // group, rest


def _contexts(classes: torch.Tensor, tokens: int) -> np.ndarray:
    """The table of each symbol, [heads, tokens * dim] uint8."""
    return classes[:, None].expand(-1, tokens, -1).reshape(len(classes), -1).numpy()
