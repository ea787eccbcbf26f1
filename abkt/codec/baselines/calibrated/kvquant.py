"""KVQuant (arXiv 2401.18079): K per channel before RoPE, V per token, non-uniform codes, and 1 % of the values kept apart as outliers.

Calibrated for each layer: the range of each channel of K without its outliers, and the codebooks of K and of V, by k-means that weighs each
value by its Fisher information. A token of V finds its range and its outliers itself. The first token stays in float16, as in the paper's
attention-sink-aware form. Sizes as in the paper: an outlier is a float16 and a 16-bit place, and each token has a 32-bit pointer (here a
count); 1 % of outliers then take 0.32 bit a value, which makes the paper's 3.33 bits for nuq3-1%. Tokens of V add a float16 scale and
zero. Left out: Q-norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.baselines.calibrated.kv import CalibrationKV
from abkt.codec.baselines.rope import Rope, rotated, unrotated
from abkt.codec.bits import pack, packed_bytes, unpack

OUTLIERS = 0.01
ROUNDS = 20
MOST = 50_000  # values of a layer that a codebook is made from


@dataclass(frozen=True, eq=False)
class KvQuant(MessageBaseline):
    """bits: of a code. low, high: [layers, heads, head_dim], range of K. books: [layers, 2, 2**bits], codebooks over [-1, 1]."""

    name: str
    bits: int
    rope: Rope
    low: torch.Tensor
    high: torch.Tensor
    books: torch.Tensor

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        if x.shape[1] != 2 or x.shape[0] != len(self.books) or (x.shape[2], x.shape[4]) != tuple(self.low.shape[1:]):
            raise ValueError(f"KV {tuple(x.shape)} does not fit the calibration of {self.name}")
        if not x.isfinite().all():
            raise ValueError("KV is not finite; it cannot be coded by KVQuant")
        plain = unrotated(x, self.rope)
        first, rest = plain[..., :1, :], plain[..., 1:, :].permute(0, 1, 3, 2, 4).flatten(3)  # [layers, 2, tokens, heads * dim]
        first_half = _half(first)
        if not rest.shape[2]:
            return [first_half]
        k, v = rest[:, 0], rest[:, 1]
        lows, highs = self.low.flatten(1)[:, None], self.high.flatten(1)[:, None]
        v_out = outliers_of(v)
        inner = torch.where(v_out, torch.nan, v)
        pair = torch.stack((inner.nan_to_num(torch.inf).amin(-1), inner.nan_to_num(-torch.inf).amax(-1)), -1)
        pair = _half(pair)
        ends = pair.float()
        unit = torch.stack((to_unit(k, lows, highs), to_unit(v, ends[..., :1], ends[..., 1:])), 1)
        out = torch.stack(((k < lows) | (k > highs), v_out), 1)
        middles = (self.books[..., 1:] + self.books[..., :-1]) / 2
        codes = torch.stack([torch.stack([torch.bucketize(unit[i, j], middles[i, j]) for j in (0, 1)]) for i in range(len(unit))])
        counts = out.sum(-1).to(torch.int32)
        places = out.nonzero()[:, -1].to(torch.int16)
        return [first_half, pair, counts, places, _half(rest[out]), pack(codes.to(torch.uint8), self.bits)]

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        layers, kinds, heads, tokens, dim = shape
        first = body.take(torch.float16, layers, kinds, heads, 1, dim).float()
        if tokens == 1:
            return rotated(first, self.rope)
        rows = (layers, kinds, tokens - 1, heads * dim)
        pair = body.take(torch.float16, layers, tokens - 1, 2).float()
        counts = body.take(torch.int32, *rows[:3]).long()
        total = int(counts.sum())
        places, apart = body.take(torch.int16, total).long(), body.take(torch.float16, total).float()
        if int(counts.min()) < 0 or (total and not 0 <= int(places.min()) <= int(places.max()) < rows[3]):
            raise ValueError("message is damaged: an outlier lies outside of its token")
        codes = unpack(body.take(torch.uint8, packed_bytes(torch.Size(rows).numel(), self.bits)), self.bits, rows).long()
        unit = torch.stack([torch.stack([self.books[i, j][codes[i, j]] for j in (0, 1)]) for i in range(layers)])
        k = from_unit(unit[:, 0], self.low.flatten(1)[:, None], self.high.flatten(1)[:, None])
        v = from_unit(unit[:, 1], pair[..., :1], pair[..., 1:])
        rest = torch.stack((k, v), 1).flatten(0, 2)
        row = torch.arange(len(rest)).repeat_interleave(counts.flatten())
        rest[row, places] = apart
        rest = rest.reshape(layers, kinds, tokens - 1, heads, dim).permute(0, 1, 3, 2, 4)
        return rotated(torch.cat((first, rest), 3), self.rope)


def fit(calibration: CalibrationKV, bits: int, name: str = "") -> KvQuant:
    """KVQuant with the ranges and codebooks of the calibration texts."""
    x = calibration.unrotated(every=4)
    layers, tokens = len(x), x.shape[3]
    ordered = x[:, 0].sort(2).values
    cut = max(1, round(tokens * OUTLIERS / 2))
    low, high = ordered[:, :, cut].contiguous(), ordered[:, :, -1 - cut].contiguous()
    weight = calibration.diagonal
    books = torch.empty(layers, 2, 2**bits)
    generator = torch.Generator().manual_seed(0)
    for layer in range(layers):
        k, v = x[layer, 0], x[layer, 1].transpose(0, 1).flatten(1)  # v: [tokens, heads * dim]
        v = torch.where(outliers_of(v), torch.nan, v)
        ends = v.nan_to_num(torch.inf).amin(-1, keepdim=True), v.nan_to_num(-torch.inf).amax(-1, keepdim=True)
        scale = high[layer] - low[layer]
        parts = (
            (to_unit(k, low[layer][:, None], high[layer][:, None]), (weight[layer, 0] * scale.square())[:, None].expand_as(k)),
            (to_unit(v, *ends), weight[layer, 1].flatten()[None] * (ends[1] - ends[0]).square()),
        )
        for kind, (unit, of) in enumerate(parts):
            good = unit.isfinite() & (unit.abs() <= 1)
            values, weights = unit[good], of.expand_as(unit)[good]
            some = torch.randint(len(values), (min(MOST, len(values)),), generator=generator)
            books[layer, kind] = codebook(values[some], weights[some], bits)
    return KvQuant(name or f"kvquant{bits}", bits, calibration.rope, low, high, books)


def codebook(values: torch.Tensor, weights: torch.Tensor, bits: int) -> torch.Tensor:
    """Weighted k-means of values [n]: 2**bits centroids in order, which start at the weighted quantiles."""
    order = values.argsort()
    v, w = values[order].double(), weights[order].double().clamp_min(1e-30)
    share = (w.cumsum(0) - w / 2) / w.sum()
    at = (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits
    centres = v[torch.searchsorted(share, at).clamp_max(len(v) - 1)]
    centres += torch.linspace(-1e-6, 1e-6, len(centres), dtype=torch.float64)  # no two alike
    mass, moment = w.cumsum(0), (w * v).cumsum(0)
    for _ in range(ROUNDS):
        edges = torch.searchsorted(v, (centres[1:] + centres[:-1]) / 2)
        ends = torch.cat((edges, torch.tensor([len(v)]))) - 1
        masses, moments = (torch.where(ends >= 0, total[ends.clamp_min(0)], 0.0) for total in (mass, moment))
        own, sums = masses.diff(prepend=masses.new_zeros(1)), moments.diff(prepend=masses.new_zeros(1))
        centres = torch.where(own > 0, sums / own.clamp_min(1e-300), centres)
    return centres.float().sort().values


def outliers_of(v: torch.Tensor) -> torch.Tensor:
    """The OUTLIERS of each row [..., n] farthest out, half of them on each side: a mask."""
    n = v.shape[-1]
    each = max(1, round(n * OUTLIERS / 2))
    mask = torch.zeros(v.shape, dtype=torch.bool)
    order = v.argsort(-1)
    mask.scatter_(-1, order[..., :each], True)
    mask.scatter_(-1, order[..., n - each :], True)
    return mask


def to_unit(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """x with [low, high] mapped to [-1, 1]."""
    return (x - low) / (high - low).clamp_min(1e-8) * 2 - 1


def from_unit(unit: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return (unit + 1) / 2 * (high - low).clamp_min(1e-8) + low


def _half(x: torch.Tensor) -> torch.Tensor:
    half = x.half()
    if not half.isfinite().all():
        raise ValueError("KV is not finite, or beyond what float16 can hold; send it raw or lossless")
    return half
