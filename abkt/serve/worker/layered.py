"""A transfer that begins while prefill still runs: groups of layers one after another, each as soon as it is computed, then a footer.

    raw      the blocks of the first group of layers, of the second, …
    stream   a complete embedded stream of each group (over a pool of its layers alone), each ended at a cut when its turn is over
    footer   first token, uint32 | of each group: bytes on the wire, bytes that count, uint64; little-endian

What a stream's turn is worth is decided frame by frame, like the cut of any stream. A group's weights are those of its own layers' last
queries, mean 1 over the group, so nothing waits for the layers behind it.
Not here: the lossless mode, refinement behind the start, and a pool that is not the CPU's.
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from abkt.codec.calibration import Calibration
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
Turn = Callable[[int, Stream, float, int, int, int], int]
_TOKEN, _GROUP = struct.Struct("<I"), struct.Struct("<QQ")


def spans(layers: int, groups: int) -> list[Span]:
    """(first layer, layer after the last) of each group, as even as they can be."""
    starts = [group * layers // groups for group in range(groups + 1)]
    return list(pairwise(starts))


def groups_of(offer: Offer) -> int:
    """In how many groups of layers it comes; 0 if what it says of them is no number."""
    groups = offer.more.get("layer_groups", 1)
    return groups if type(groups) is int else 0


def footer_bytes(groups: int) -> int:
    return _TOKEN.size + groups * _GROUP.size


class Footer:
    """Read by the receiver. Raises ValueError where it cannot be that of such a transfer."""

    def __init__(self, data: Buffer, groups: int, size_bytes: int) -> None:
        (self.first_token,) = _TOKEN.unpack_from(data)
        self.sections: list[Span] = []  # (first byte, byte after the last that counts)
        at = 0
        for size, used in _GROUP.iter_unpack(bytes(data[_TOKEN.size :])):
            if not 0 < used <= size:
                raise ValueError(f"a group of layers of {size} bytes cannot have {used} that count")
            self.sections.append((at, at + used))
            at += size
        if at + len(data) != size_bytes or len(self.sections) != groups:
            raise ValueError(f"the groups of layers have {at} bytes; {size_bytes} came with the footer")


class Layered:
    """What the sender reads from, while the main loop adds to it. Thread-safe; implements ByteSource and Outgoing.available.

    most_bytes: of all that may be added. turn(index, stream, now_s, before_bytes, sent_bytes, complete) -> the cut of that stream now:
    before_bytes are those of the groups before it, sent_bytes those of all, complete is the cut of it that is whole.
    """

    def __init__(self, groups: int, most_bytes: int, turn: Turn | None = None) -> None:
        self.ends: tuple[int, ...] = (1, most_bytes) if turn else (most_bytes,)
        self._groups = groups
        self._turn = turn
        self._lock = threading.Lock()
        self._parts: list[Stream | Pieces] = []
        self._stops: list[int] = []  # of the groups whose turn is over
        self._used: list[int] = []  # bytes of each that count
        self.cuts: list[int] = []
        self._token: int | None = None
        self._footer = b""

    def distortion(self) -> float:
        """Of all layers, which count the same; once all turns are over."""
        with self._lock:
            found = [
                (part.header.cells.shape[0], part.curve.distortion[cut])
                for part, cut in zip(self._parts, self.cuts, strict=True)
                if isinstance(part, Stream)
            ]
        return sum(layers * left for layers, left in found) / max(1, sum(layers for layers, _ in found))

    def add(self, part: Stream | Pieces) -> None:
        """The next group is there."""
        with self._lock:
            self._parts.append(part)

    def finish(self, first_token: int) -> None:
        """Prefill is over."""
        with self._lock:
            self._token = first_token

    def available(self, now_s: float, sent_bytes: int) -> tuple[int, bool]:
        with self._lock:
            while True:
                base, index = self._stops[-1] if self._stops else 0, len(self._stops)
                if sent_bytes < base:
                    return base, False  # a part of it was lost with its connection
                if index == self._groups:
                    if self._token is None:
                        return sent_bytes, False
                    self._footer = self._footer or self._made()
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
            found: list[memoryview] = []
            while start < stop:
                index = bisect_right(self._stops, start)
                base = self._stops[index - 1] if index else 0
                end = min(stop, self._stops[index]) if index < len(self._stops) else stop
                if index == self._groups:
                    found.append(memoryview(self._footer)[start - base : end - base])
                else:
                    found += self._parts[index].buffers(start - base, end - base)
                start = end
            return found

    def _goal(self, index: int, now_s: float, base: int, sent_bytes: int) -> tuple[int, int, int]:
        """(where this group's turn ends as things stand, bytes of it that count if it ended now, the cut they are)."""
        part, within = self._parts[index], sent_bytes - base
        if isinstance(part, Pieces):
            return base + part.size, part.size, 0
        assert self._turn is not None
        complete = max(0, bisect_right(part.ends, within) - 1)
        cut = max(complete, self._turn(index, part, now_s, base, sent_bytes, complete))
        return base + part.ends[cut], part.ends[complete], complete

    def _made(self) -> bytes:
        sizes = [stop - start for start, stop in pairwise((0, *self._stops))]
        assert self._token is not None
        return _TOKEN.pack(self._token) + b"".join(_GROUP.pack(size, used) for size, used in zip(sizes, self._used, strict=True))


class Group:
    """The layers of one group as a pool of their own: where its stream is made and expanded."""

    def __init__(self, codec: Codec, span: Span) -> None:
        self.first, self.stop = span
        model = replace(codec.layout.model, layers=self.stop - self.first)
        self._layout = replace(codec.layout, model=model)
        calibration = codec.calibration
        if calibration:
            part = slice(*span)
            calibration = Calibration(calibration.model, calibration.gamma, calibration.sensitivity[part], calibration.levels[part])
        self._codec = Codec(self._layout, codec.backend, codec.tile_tokens, codec.rope_theta, calibration)  # type: ignore[arg-type]

    def encode(self, pool: Pool, table: Sequence[int], tokens: int, decision: Decision, importance: Importance) -> Stream:
        alone, used = self._pool(tokens), list(range(self._layout.blocks_for(tokens)))
        alone.data.copy_(pool.data[torch.tensor(table[: len(used)]), self.first : self.stop])
        weights = None
        if importance.queries:
            own = Importance(
                importance.window,
                {layer - self.first: seen for layer, seen in importance.queries.items() if self.first <= layer < self.stop},
            )
            weights = own.weights(alone, used, self._codec.cells(tokens, decision.depth_bits), self._codec.calibration)
        return self._codec.encode(alone, used, tokens, decision.depth_bits, decision.order, weights, decision.coder)

    def expand(self, data: memoryview, pool: Pool, table: Sequence[int], tokens: int) -> float:
        """Into the blocks of a table; returns the distortion."""
        alone, used = self._pool(tokens), list(range(self._layout.blocks_for(tokens)))
        expanded = self._codec.expand(data, alone, used)
        if expanded.tokens != tokens:
            raise ValueError(f"a group of layers of {expanded.tokens} tokens came with those of {tokens}")
        pool.data[torch.tensor(table[: len(used)]), self.first : self.stop] = alone.data
        return expanded.distortion

    def _pool(self, tokens: int) -> Pool:
        return Pool(replace(self._layout, blocks=self._layout.blocks_for(tokens)))


class Watcher(Importance):
    """Sees each layer of a prompt as it is computed, and says when one is done."""

    def __init__(self, window: int, done: Callable[[int], None]) -> None:
        super().__init__(window)
        self._done = done

    def observe(self, layer: int, query: torch.Tensor, scale: float) -> None:
        """The layer's K and V are in the pool by now."""
        if self.window:
            super().observe(layer, query, scale)
        self._done(layer)


def most_bytes(layout: KVLayout, tokens: int, groups: int) -> int:
    """That streams of all groups and their footer may take at most: no stream is larger than what it codes but for its tables."""
    raw_bytes = layout.blocks_for(tokens) * layout.block_bytes
    tiles = -(-tokens // layout.block_tokens) * layout.model.layers * layout.model.kv_heads * layout.model.kv_kinds
    return raw_bytes + raw_bytes // 4 + 4096 * groups + 64 * tiles + footer_bytes(groups)


def raw_group(pool: Pool, table: Sequence[int], span: Span) -> list[memoryview]:
    """The memory of a group's layers in the blocks of a table."""
    layer_bytes = pool.layout.block_bytes // pool.layout.model.layers
    return [pool.run_bytes(block, 1)[span[0] * layer_bytes : span[1] * layer_bytes] for block in table]


class RawSink(PiecesSink):
    """A raw transfer in groups of layers, straight into the blocks of a table. footer: what follows them."""

    def __init__(self, pool: Pool, table: Sequence[int], groups: int) -> None:
        self.footer = bytearray(footer_bytes(groups))
        pieces = [piece for span in spans(pool.layout.model.layers, groups) for piece in raw_group(pool, table, span)]
        super().__init__([*pieces, self.footer])
