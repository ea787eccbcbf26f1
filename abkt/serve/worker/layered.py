"""A transfer that begins while prefill still runs: it sends each group of layers as soon as it is computed, then a footer.

    raw      the blocks of the first group of layers, then those of the second, …
    stream   one embedded stream per group, coded as if the pool had these layers only, and ended at the group's own cut
    footer   first output token, uint32 | for each group: bytes on the wire, valid bytes, uint64; little-endian

The cut of a group's stream is decided before each frame, as for any stream. A group's weights come from the last queries of its own layers,
with mean 1 over the group, so a group does not wait for later layers.
Not supported: the lossless mode, refinement while the request decodes, and pools that are not on the CPU.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from abkt.codec.codec import Codec
from abkt.codec.importance import Importance
from abkt.codec.stream import Stream
from abkt.kv.pool import Pool
from abkt.policy.view import Decision
from abkt.spec import KVLayout
from abkt.transfer.buffers import Buffer
from abkt.transfer.pieces import Pieces, PiecesSink
from abkt.transfer.protocol.messages import Offer

Span = tuple[int, int]
NextCut = Callable[[int, Stream, float, int, int, int], int]  # see LayeredSource
_TOKEN, _GROUP = struct.Struct("<I"), struct.Struct("<QQ")


def spans(layers: int, groups: int, ends: Sequence[int] = ()) -> list[Span]:
    """(first layer, layer after the last) of each group; group sizes differ by at most one layer.

    ends: where a group may end (Codec.layer_ends); empty: anywhere. Then groups end at the nearest of these places, and may be fewer.
    """
    places = [group * layers // groups for group in range(1, groups + 1)]
    if ends:
        places = sorted({min(ends, key=lambda end: (abs(end - place), end)) for place in places} | {layers})
    return list(pairwise((0, *places)))


def ends_of(groups: Sequence[Span]) -> str:
    """How an offer says its groups of layers: where they end."""
    return ",".join(str(stop) for _, stop in groups)


def spans_of(offer: Offer, layers: int) -> list[Span]:
    """The groups of layers in a transfer to a model of `layers` layers; none if the offer does not divide these."""
    if "layer_ends" not in offer.more:
        return [(0, layers)]
    said = str(offer.more["layer_ends"]).split(",")
    ends = [int(end) for end in said if end.isascii() and end.isdecimal() and len(end) <= 6]
    found = list(pairwise((0, *ends)))
    return found if len(ends) == len(said) and ends[-1] == layers and all(first < stop for first, stop in found) else []


def footer_bytes(groups: int) -> int:
    return _TOKEN.size + groups * _GROUP.size


class LayerFooter:
    """The footer as the receiver reads it. sections: (first byte, byte after the last valid one) of each group. Raises ValueError if the
    footer does not fit the transfer.

    data: the footer's bytes. size_bytes: size of the whole transfer.
    """

    def __init__(self, data: Buffer, groups: int, size_bytes: int) -> None:
        (self.first_token,) = _TOKEN.unpack_from(data)
        self.sections: list[Span] = []
        at = 0
        for size, used in _GROUP.iter_unpack(bytes(data[_TOKEN.size :])):
            if not 0 < used <= size:
                raise ValueError(f"a group of layers of {size} bytes cannot have {used} bytes that count")
            self.sections.append((at, at + used))
            at += size
        if at + len(data) != size_bytes or len(self.sections) != groups:
            raise ValueError(f"the groups of layers have {at} bytes by the footer, but {size_bytes} arrived with it")


class LayeredSource:
    """A growing source: the main loop adds groups while the sender reads. Thread-safe; implements ByteSource and Outgoing.available.

    Parameters
    ----------
    groups : number of groups that will be added.
    most_bytes : upper bound of the bytes of all groups and the footer.
    next_cut : None for raw groups. Otherwise next_cut(index, stream, now_s, before_bytes, sent_bytes, complete) is called before every
        frame and returns the cut that the stream of group `index` shall reach. before_bytes: bytes of the earlier groups; sent_bytes:
        bytes sent of all groups so far; complete: the finest cut that was sent completely.
    """

    def __init__(self, groups: int, most_bytes: int, next_cut: NextCut | None = None) -> None:
        self.ends: tuple[int, ...] = (1, most_bytes) if next_cut else (most_bytes,)
        self._groups = groups
        self._next_cut = next_cut
        self._lock = threading.Lock()
        self._parts: list[Stream | Pieces] = []
        self._stops: list[int] = []  # end offset of each sent group
        self._used: list[int] = []  # valid bytes of each sent group
        self.cuts: list[int] = []
        self._token: int | None = None
        self._footer = b""

    def distortion(self) -> float:
        """Mean distortion over the layers, once all groups are sent."""
        with self._lock:
            found = [
                (part.header.cells.shape[0], part.curve.distortion[cut])
                for part, cut in zip(self._parts, self.cuts, strict=True)
                if isinstance(part, Stream)
            ]
        return sum(layers * left for layers, left in found) / max(1, sum(layers for layers, _ in found))

    def add(self, part: Stream | Pieces) -> None:
        """Add the next group, which is computed."""
        with self._lock:
            self._parts.append(part)

    def finish(self, first_token: int) -> None:
        """End the source after prefill, with the first output token."""
        with self._lock:
            self._token = first_token

    def available(self, now_s: float, sent_bytes: int) -> tuple[int, bool]:
        """(offset up to which bytes may be sent now, whether that is the end)."""
        with self._lock:
            while True:
                base, index = self._stops[-1] if self._stops else 0, len(self._stops)
                if sent_bytes < base:
                    return base, False  # bytes were lost with a connection
                if index == self._groups:
                    if self._token is None:
                        return sent_bytes, False
                    self._footer = self._footer or self._make_footer()
                    return base + len(self._footer), True
                if index == len(self._parts):
                    return sent_bytes, False
                goal, used, cut = self._goal(index, now_s, base, sent_bytes)
                if sent_bytes < goal:
                    return goal, False
                self._stops.append(sent_bytes)
                self._used.append(used)
                self.cuts.append(cut)

    def buffers(self, start: int, stop: int) -> list[memoryview]:
        with self._lock:
            views: list[memoryview] = []
            while start < stop:
                index = bisect_right(self._stops, start)
                base = self._stops[index - 1] if index else 0
                end = min(stop, self._stops[index]) if index < len(self._stops) else stop
                if index == self._groups:
                    views.append(memoryview(self._footer)[start - base : end - base])
                else:
                    views += self._parts[index].buffers(start - base, end - base)
                start = end
            return views

    def _goal(self, index: int, now_s: float, base: int, sent_bytes: int) -> tuple[int, int, int]:
        """(offset at which this group should end, its valid bytes if it ended now, the cut of these bytes)."""
        part, within = self._parts[index], sent_bytes - base
        if isinstance(part, Pieces):
            return base + part.size, part.size, 0
        assert self._next_cut is not None
        complete = max(0, bisect_right(part.ends, within) - 1)
        cut = max(complete, self._next_cut(index, part, now_s, base, sent_bytes, complete))
        return base + part.ends[cut], part.ends[complete], complete

    def _make_footer(self) -> bytes:
        sizes = [stop - start for start, stop in pairwise((0, *self._stops))]
        assert self._token is not None
        return _TOKEN.pack(self._token) + b"".join(_GROUP.pack(size, used) for size, used in zip(sizes, self._used, strict=True))


class LayerGroup:
    """Encodes and expands the layers of one group, in a pool that has only these layers.

    Where a group would divide layers that the klt coder transforms together, that coder refuses it: see Codec.layer_ends.
    """

    def __init__(self, codec: Codec, span: Span) -> None:
        self.span = self.first, self.stop = span
        model = codec.layout.model.part(self.first, self.stop)
        self._layout = replace(codec.layout, model=model)
        calibration = codec.calibration
        if calibration:
            whole = set(span) <= {0, *codec.layer_ends()}
            calibration = (calibration if whole else replace(calibration, basis=None, choices=())).part(*span)
        self._codec = Codec(self._layout, codec.backend, codec.tile_tokens, codec.rope_theta, calibration, codec.cut_windows)  # type: ignore[arg-type]

    def encode(self, pool: Pool, table: Sequence[int], tokens: int, decision: Decision, importance: Importance) -> Stream:
        alone, used = self._pool(tokens), list(range(self._layout.blocks_for(tokens)))
        alone.data.copy_(pool.data[torch.tensor(table[: len(used)]), self.first : self.stop])
        weights = observed = None
        if importance.queries:
            own = Importance(
                importance.window,
                {layer - self.first: seen for layer, seen in importance.queries.items() if self.first <= layer < self.stop},
            )
            if decision.coder == "klt":
                observed = own.tokens(alone, used, tokens)
            else:
                weights = own.weights(alone, used, self._codec.cells(tokens, decision.depth_bits), self._codec.calibration)
        return self._codec.encode(alone, used, tokens, decision.depth_bits, decision.order, weights, decision.coder, observed)

    def expand(self, data: memoryview, pool: Pool, table: Sequence[int], tokens: int) -> float:
        """Expand the group's stream into a table's blocks in `pool`; returns the distortion. Raises ValueError if the stream is damaged."""
        alone, used = self._pool(tokens), list(range(self._layout.blocks_for(tokens)))
        expanded = self._codec.expand(data, alone, used)
        if expanded.tokens != tokens:
            raise ValueError(f"a group of layers has {expanded.tokens} tokens, but the prompt {tokens}")
        pool.data[torch.tensor(table[: len(used)]), self.first : self.stop] = alone.data
        return expanded.distortion

    def _pool(self, tokens: int) -> Pool:
        return Pool(replace(self._layout, blocks=self._layout.blocks_for(tokens)))


class LayerObserver(Importance):
    """Observes each layer of a prompt while it is computed. done: called with a layer's number when its K and V are in the pool."""

    def __init__(self, window: int, done: Callable[[int], None]) -> None:
        super().__init__(window)
        self._done = done

    def observe(self, layer: int, query: torch.Tensor, scale: float) -> None:
        if self.window:
            super().observe(layer, query, scale)
        self._done(layer)


def most_bytes(layout: KVLayout, tokens: int, groups: int) -> int:
    """An upper bound of the streams of all groups and their footer: a stream is never larger than its input plus its tables."""
    raw_bytes = layout.blocks_for(tokens) * layout.block_bytes
    tiles = -(-tokens // layout.block_tokens) * layout.model.layers * layout.model.kv_heads * layout.model.kv_kinds
    return raw_bytes + raw_bytes // 4 + 4096 * groups + 64 * tiles + footer_bytes(groups)


def raw_group(pool: Pool, table: Sequence[int], tokens: int, span: Span) -> list[memoryview]:
    """The memory of a group's layers in the blocks of a sequence, without layers whose window begins later (KVLayout.kept_layers)."""
    layer_bytes, (first, stop) = pool.layout.block_bytes // pool.layout.model.layers, span
    return [
        pool.run_bytes(block, 1)[max(a, first) * layer_bytes : min(b, stop) * layer_bytes]
        for block, kept in zip(table, pool.layout.kept_layers(tokens), strict=True)
        for a, b in kept
        if max(a, first) < min(b, stop)
    ]


class RawSink(PiecesSink):
    """Receives a raw transfer in groups of layers, directly into the blocks of a table. footer: the bytes after the blocks."""

    def __init__(self, pool: Pool, table: Sequence[int], tokens: int, groups: Sequence[Span]) -> None:
        self.footer = bytearray(footer_bytes(len(groups)))
        pieces = [piece for span in groups for piece in raw_group(pool, table, tokens, span)]
        super().__init__([*pieces, self.footer])
