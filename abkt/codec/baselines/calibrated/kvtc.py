"""KVTC (arXiv 2511.01815): principal components of K before RoPE and of V over layers and heads, bits by variance, entropy coding.

As in the paper, the first 4 and the newest 128 tokens travel exactly, the mean and the basis come from calibration texts, and components
of little variance get no bits. The paper analyses all layers at once, from far more tokens; the calibration texts here are a few thousand
tokens, so groups of adjacent layers with at most MOST_DIMS channels have components of their own. The paper's allocation by dynamic
programming is best where each further bit saves the same error; here that is one step for all components and a dead zone, and rANS with a
table for each class of deviation takes the place of DEFLATE. Neither is meant to cost it bytes. With `weighted`, a head's
values are scaled by the root of its Fisher information before the analysis, which the paper does not do: the rival then knows which heads
matter.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from abkt.codec.baselines.base import Body, MessageBaseline
from abkt.codec.baselines.cachegen import CLASSES, tables
from abkt.codec.baselines.calibrated.kv import SINKS, CalibrationKV
from abkt.codec.baselines.rope import Rope, rotated, unrotated
from abkt.codec.bits import pack, packed_bytes, unpack
from abkt.codec.rans import compiled as rans

WINDOW = 128
REACH = 127
MOST_DIMS = 1024  # channels that are analysed together
MOST_TOKENS = 8192  # of the calibration texts in the analysis
WIDE = 24.0  # steps: a component that deviates by more is split, its low 4 bits travel as they are
LEAST = 0.25  # steps: a component that deviates by less gets no bits
ROUND_UP = 0.4  # values are rounded away from 0 above this part of a step from the next one


@dataclass(frozen=True, eq=False)
class Components:
    """Of K (kind 0) or V of the layers from start to stop: mean [n], basis [n, n] of the scaled values, deviation [n] of each component,
    scale [n], with n = layers * heads * dim."""

    kind: int
    start: int
    stop: int
    mean: torch.Tensor
    basis: torch.Tensor
    deviation: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True, eq=False)
class Kvtc(MessageBaseline):
    """step: of the quantiser, the same for all components. parts: the components of K and V of all layers."""

    name: str
    step: float
    rope: Rope
    parts: tuple[Components, ...]
    window: int = WINDOW

    def pack(self, x: torch.Tensor) -> list[torch.Tensor | bytes]:
        layers, kinds, heads, tokens, dim = x.shape
        last_part = self.parts[-1]
        if kinds != 2 or layers != last_part.stop or heads * dim * (layers - last_part.start) != len(last_part.mean):
            raise ValueError(f"KV {tuple(x.shape)} does not fit the calibration of {self.name}")
        if not x.isfinite().all():
            raise ValueError("KV is not finite; it cannot be coded by KVTC")
        first, last = coded(tokens, self.window)
        body: list[torch.Tensor | bytes] = [x[..., :first, :], x[..., last:, :]]
        if first == last:
            return body
        plain = unrotated(x, self.rope)[..., first:last, :]
        for part in self.parts:
            kept, wide, classes = self._layout(part)
            flat = plain[part.start : part.stop, part.kind].permute(2, 0, 1, 3).flatten(1)
            found = ((flat - part.mean) * part.scale) @ part.basis[:, kept] / self.step
            codes = (found.sign() * (found.abs() + ROUND_UP).floor()).clamp(-(2**15), 2**15 - 1).long()
            low = pack((codes[:, wide] & 15).to(torch.uint8), 4)
            codes[:, wide] >>= 4
            symbols = (codes.clamp(-REACH, REACH) + REACH).to(torch.uint8).numpy()
            contexts = np.broadcast_to(classes, symbols.shape)
            stream = rans.encode(symbols.reshape(1, -1), contexts.reshape(1, -1), tables(REACH))[0]
            body += [torch.tensor([len(stream)], dtype=torch.int32), stream, low]
        return body

    def restore(self, body: Body, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        layers, kinds, heads, tokens, dim = shape
        first, last = coded(tokens, self.window)
        out = torch.empty(shape)
        out[..., :first, :] = body.take(dtype, layers, kinds, heads, first, dim).float()
        out[..., last:, :] = body.take(dtype, layers, kinds, heads, tokens - last, dim).float()
        if first == last:
            return out
        plain = torch.zeros(shape)
        for part in self.parts:
            size = int(body.take(torch.int32, 1))
            if size < 0:
                raise ValueError("message is damaged: a size is below 0")
            stream = body.take_bytes(size)
            kept, wide, classes = self._layout(part)
            contexts = np.broadcast_to(classes, (last - first, len(classes)))
            symbols = rans.decode([stream], contexts.size, contexts.reshape(1, -1), tables(REACH))
            codes = torch.from_numpy(symbols.astype(np.int64)).reshape(contexts.shape) - REACH
            places = (last - first, int(wide.sum()))
            low = unpack(body.take(torch.uint8, packed_bytes(places[0] * places[1], 4)), 4, places)
            codes[:, wide] = codes[:, wide] * 16 + low.long()
            flat = codes.float() * self.step @ part.basis[:, kept].T / part.scale + part.mean
            of_layers = flat.view(last - first, part.stop - part.start, heads, dim).permute(1, 2, 0, 3)
            plain[part.start : part.stop, part.kind, :, first:last] = of_layers
        out[..., first:last, :] = rotated(plain, self.rope)[..., first:last, :]
        return out

    def _layout(self, part: Components) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """The components that get bits, [rank] bool, and of these which are split, and the table of each."""
        ratio = part.deviation / self.step
        kept = ratio > LEAST
        wide = ratio[kept] > WIDE
        scaled = torch.where(wide, ratio[kept] / 16, ratio[kept]).clamp_min(1e-6)
        return kept, wide, (scaled.log2() * 2 + 12).round().clamp(0, CLASSES - 1).to(torch.uint8).numpy()


def coded(tokens: int, window: int) -> tuple[int, int]:
    """The tokens that are transformed: from the first number up to the second."""
    first = min(SINKS, tokens)
    return first, max(first, tokens - window)


def fit(calibration: CalibrationKV, steps: Sequence[float], weighted: bool = False, window: int = WINDOW, name: str = "kvtc") -> list[Kvtc]:
    """A codec for each step. Steps are relative to the root mean square of the scaled values of the calibration texts."""
    x = calibration.unrotated(every=max(1, calibration.kv[0].shape[3] * len(calibration.kv) // MOST_TOKENS))
    layers, _, heads, _, dim = x.shape
    together, parts, energy = max(1, MOST_DIMS // (heads * dim)), [], 0.0
    starts = range(0, layers, together)
    for kind, start in itertools.product(range(2), starts):
        stop = min(layers, start + together)
        flat = x[start:stop, kind].permute(2, 0, 1, 3).flatten(1)
        mean = flat.mean(0)
        of_heads = calibration.of_heads[start:stop, kind].sqrt() if weighted else torch.ones(stop - start, heads)
        scale = of_heads[..., None].expand(stop - start, heads, dim).flatten().clamp_min(float(of_heads.max()) * 1e-6)
        centred = (flat - mean) * scale
        values, vectors = torch.linalg.eigh((centred.T @ centred).double() / len(flat))
        parts.append(Components(kind, start, stop, mean, vectors.float(), values.clamp_min(0).sqrt().float(), scale))
        energy += float(centred.square().mean()) / 2 / len(starts)
    return [Kvtc(f"{name}-{step:g}", step * energy**0.5, calibration.rope, tuple(parts), window) for step in steps]
