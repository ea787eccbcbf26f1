"""The codecs that are compared: ours at many cuts, its ablations, and the published baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from abkt.codec.baselines import ALL as BASELINES
from abkt.codec.baselines import LOSSLESS, CacheGenCodec, Kivi
from abkt.codec.baselines.base import Baseline
from abkt.codec.calibration import Calibration
from abkt.codec.cells import BITS, Cells
from abkt.codec.codec import Codec
from abkt.codec.importance import Importance
from abkt.codec.stream import Stream
from abkt.kv.pool import Pool
from abkt.policy.view import CoderName, Order


@dataclass(frozen=True, slots=True)
class Held:
    """The KV of a prompt after prefill, and the importance of its cells by the last queries."""

    pool: Pool
    table: list[int]
    tokens: int
    importance: Importance


@dataclass(frozen=True, slots=True)
class RatePoint:
    """One rate of a codec. put: writes the received KV into the blocks of another table of the same pool. distortion: distortion that the
    codec reports, by its own weights; nan for codecs that report none. kept: [layers, kv_heads, tokens] bool, the tokens that were sent,
    which alone are seen by later ones; None: all."""

    rate: str
    wire_bytes: int
    put: Callable[[list[int]], object]
    distortion: float = float("nan")
    kept: torch.Tensor | None = None


class Method(Protocol):
    """A codec that is compared: its rates, each with the bytes and the KV that arrives."""

    @property
    def name(self) -> str: ...

    def points(self, held: Held) -> Iterator[RatePoint]: ...


@dataclass(frozen=True)
class Message:
    """A baseline with one message and one rate."""

    codec: Baseline

    @property
    def name(self) -> str:
        return self.codec.name

    def points(self, held: Held) -> Iterator[RatePoint]:
        data = self.codec.encode(held.pool, held.table, held.tokens)
        yield RatePoint("", len(data), lambda table: self.codec.expand(data, held.pool, table))


@dataclass(frozen=True)
class RawMethod:
    name: str = "raw"

    def points(self, held: Held) -> Iterator[RatePoint]:
        source = held.table[: held.pool.layout.blocks_for(held.tokens)]

        def put(table: list[int]) -> None:
            held.pool.data[table[: len(source)]] = held.pool.data[source]

        yield RatePoint("", held.tokens * held.pool.layout.model.kv_bytes_per_token, put)


Weigh = Callable[[Held, Cells], torch.Tensor | None]


@dataclass(frozen=True)
class Cuts:
    """The embedded stream at several cuts.

    Parameters
    ----------
    name : name of the method.
    codec : codec for KV of the model.
    weigh : gives the weights of the cells; if it gives None, all cells weigh the same.
    order : slope cuts at the bytes of the uniform order's whole rates, and at `between` places between two of them by equal ratios
        (twice as many below 1 bit). uniform cuts at the whole rates.
    coder : fixed, entropy or klt, which needs a calibration with a basis.
    nested : False: each depth has its own code, which is sent whole.
    between : number of extra places, see order.
    rates : cut at these bits instead; between two whole rates the bytes are interpolated by equal ratios. uniform takes only whole ones.
    shares : cut at these shares of the raw bytes instead.
    looks : with klt, whether the last queries say how finely each token is coded.
    """

    name: str
    codec: Codec
    weigh: Weigh = field(default=lambda held, cells: None)
    order: Order = "slope"
    coder: CoderName = "fixed"
    nested: bool = True
    between: int = 0
    rates: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    looks: bool = True

    def points(self, held: Held) -> Iterator[RatePoint]:
        for depth in (8,) if self.nested else BITS[1:]:
            stream = self.stream(held, depth)
            for rate, cut in self.cuts(stream).items():
                yield RatePoint(rate, stream.ends[cut], self._put(held, stream.prefix(cut)), stream.curve.distortion[cut])

    def stream(self, held: Held, depth: int = 8) -> Stream:
        if self.coder == "klt":
            seen = held.importance.tokens(held.pool, held.table, held.tokens) if self.looks else None
            return self.codec.encode(held.pool, held.table, held.tokens, depth, self.order, coder="klt", importance=seen)
        weights = self.weigh(held, self.codec.cells(held.tokens, depth))
        return self.codec.encode(held.pool, held.table, held.tokens, depth, self.order, weights, self.coder)

    def cuts(self, stream: Stream) -> dict[str, int]:
        """Cuts by name: the bits of the uniform order with at least as many bytes."""
        whole: list[tuple[float, float]] = [
            (bits, stream.uniform.bytes[cut]) for cut, bits in enumerate(BITS[: stream.uniform.finest + 1]) if cut
        ]
        if not self.nested:
            return {f"{whole[-1][0]:g}": stream.curve.finest}
        if self.shares:
            raw = stream.header.cells.tokens * self.codec.layout.model.kv_bytes_per_token
            return {f"{share:g}": cut for share in self.shares if (cut := stream.slope.cut_within(share * raw))}
        if self.order == "uniform":
            return {f"{bits:g}": cut for cut, (bits, _) in enumerate(whole, 1) if not self.rates or bits in self.rates}
        if self.rates:
            known, sizes = zip((0.0, stream.uniform.bytes[0]), *whole)
            wanted = np.exp(np.interp(self.rates, known, np.log(sizes)))
            return {f"{bits:g}": cut for bits, budget in zip(self.rates, wanted, strict=True) if (cut := stream.slope.cut_within(budget))}
        budgets = [whole[-1]]
        for (a, b), (c, d) in pairwise([(0.0, stream.uniform.bytes[0]), *whole]):
            parts = (self.between + 1) * (2 if c <= 1 and self.between else 1)  # the curve is steepest there
            budgets += [(a + (c - a) * i / parts, b * (d / b) ** (i / parts)) for i in range(parts) if a or i]
        budgets.sort()
        return {f"{bits:g}": cut for bits, budget in budgets if (cut := stream.slope.cut_within(budget))}

    def _put(self, held: Held, data: bytes) -> Callable[[list[int]], object]:
        return lambda table: self.codec.expand(data, held.pool, table)


@dataclass(frozen=True)
class Better:
    """Ours as a calibration recommends it: at each share of the raw bytes the coder that was better on its held-out prompts."""

    codec: Codec
    shares: tuple[float, ...]
    name: str = "auto"

    def points(self, held: Held) -> Iterator[RatePoint]:
        seen = held.importance.tokens(held.pool, held.table, held.tokens)
        raw, streams = held.tokens * self.codec.layout.model.kv_bytes_per_token, dict[CoderName, Stream]()
        for share in self.shares:
            coder = self.codec.calibration.coder_at(share) if self.codec.calibration else "entropy"
            if coder not in streams:
                streams[coder] = self.codec.encode(held.pool, held.table, held.tokens, coder="auto", importance=seen, of_raw=share)
            stream = streams[coder]
            if cut := stream.curve.cut_within(share * raw):
                put = partial(self.codec.expand, stream.prefix(cut), held.pool)
                yield RatePoint(f"{share:g}", stream.ends[cut], put, stream.curve.distortion[cut])


def seen(calibration: Calibration | None) -> Weigh:
    """Weights by the last queries, with the calibration."""
    return lambda held, cells: held.importance.weights(held.pool, held.table, cells, calibration)


def averaged(over: tuple[int, ...], calibration: Calibration | None) -> Weigh:
    """Weights by the last queries, averaged over some of the axes (layer, kind, head, tile)."""
    inner = seen(calibration)

    def weigh(held: Held, cells: Cells) -> torch.Tensor | None:
        weights = inner(held, cells)
        return weights if weights is None else weights.mean(over, keepdim=True).expand(cells.shape).contiguous()

    return weigh


def shuffled(calibration: Calibration | None) -> Weigh:
    """The same weights on other cells, at random."""
    inner = seen(calibration)

    def weigh(held: Held, cells: Cells) -> torch.Tensor | None:
        weights = inner(held, cells)
        if weights is None:
            return None
        order = torch.randperm(weights.numel(), generator=torch.Generator().manual_seed(held.tokens))
        return weights.flatten()[order].view(weights.shape)

    return weigh


def by_position(gamma: float) -> Weigh:
    """Weights by the last queries to the power gamma, all heads alike."""

    def weigh(held: Held, cells: Cells) -> torch.Tensor:
        model = held.pool.layout.model
        shape = (model.layers, model.kv_kinds, model.kv_heads)
        alike = Calibration(model.name, gamma, np.ones(shape), np.zeros(shape, dtype=np.uint8))
        return held.importance.weights(held.pool, held.table, cells, alike)

    return weigh


REAL_BITS = (1.0, 1.5, 2.0, 3.0, 4.0)
"""Rates at which the codec without a transform is compared on real models."""
REAL_SHARES = (0.03, 0.04, 0.06, 0.08, 0.1, 0.13, 0.2, 0.3)
"""Shares of raw at which the codec with a transform is."""

ABLATIONS = ("ours_klt-flat", "flat", "flat-entropy", "position-only", "head-only", "shuffled", "no-prediction", "not-nested")


def methods(codec: Codec, calibration: Calibration | None) -> dict[str, Method]:
    """All methods by name. codec: codec for KV of the model. calibration: the model's calibration, if there is one."""
    still = Codec(codec.layout, tile_tokens=codec.tile_tokens, calibration=_without_differences(codec))
    weigh = seen(calibration)
    ours: Sequence[Method] = (
        RawMethod(),
        Cuts("ours", codec, weigh, between=3),
        Cuts("ours-entropy", codec, weigh, coder="entropy", between=3),
        Cuts("uniform", codec, order="uniform"),
        Cuts("uniform-entropy", codec, order="uniform", coder="entropy"),
        Cuts("flat", codec),
        Cuts("flat-entropy", codec, coder="entropy"),
        Cuts("position-only", codec, averaged((0, 1, 2), calibration)),
        Cuts("head-only", codec, averaged((3,), calibration)),
        Cuts("shuffled", codec, shuffled(calibration)),
        Cuts("no-prediction", still, weigh, coder="entropy"),
        Cuts("not-nested", codec, order="uniform", nested=False),
        Cuts("embedded", codec, weigh, coder="entropy", rates=REAL_BITS),
        Cuts("embedded-flat", codec, coder="entropy", rates=REAL_BITS),
        Cuts("embedded-position", codec, by_position(0.5), coder="entropy", rates=REAL_BITS),
        Cuts("embedded-uniform", codec, order="uniform", coder="entropy", rates=REAL_BITS),
        Message(CacheGenCodec("cachegen2", coarseness=2.0)),
        Message(Kivi("kivi3", 3)),
    )
    if calibration and calibration.basis:
        ours = (
            *ours,
            Cuts("klt", codec, coder="klt", shares=REAL_SHARES),
            Better(codec, REAL_SHARES),
            Cuts("klt-flat", codec, coder="klt", shares=REAL_SHARES, looks=False),
        )
        ours = (*ours, Cuts("ours_klt", codec, coder="klt", between=3), Cuts("ours_klt-flat", codec, coder="klt", between=3, looks=False))
    return {method.name: method for method in (*ours, *(Message(baseline) for baseline in (*BASELINES, *LOSSLESS)))}


def _without_differences(codec: Codec) -> Calibration:
    model = codec.layout.model
    shape = (model.layers, model.kv_kinds, model.kv_heads)
    return Calibration(model.name, 1.0, np.ones(shape), np.zeros(shape, dtype=np.uint8))
