"""Writes arrived KV into the pool, for every mode, as a whole or in groups of layers."""

from __future__ import annotations

import torch

from abkt.codec.codec import Codec
from abkt.codec.lossless import stream as lossless_stream
from abkt.kv.pool import Pool
from abkt.serve.worker.layered import LayerFooter, LayerGroup, RawSink, Span, footer_bytes, spans_of
from abkt.serve.worker.raw import put_raw
from abkt.transfer.pieces import BufferSink
from abkt.transfer.receive.received import Received


class Expander:
    """Expands transfers into a pool. Not thread-safe; only a decode worker's main loop uses it."""

    def __init__(self, pool: Pool, codec: Codec) -> None:
        self._pool, self._codec = pool, codec
        self._groups: list[LayerGroup] = []  # of the last transfer that came in groups

    def expand(self, received: Received, table: list[int], cut: int) -> tuple[int, float]:
        """Write a transfer's KV, up to a cut, into the blocks of a table.

        Returns
        -------
        The first output token, which the transfer carried, and the distortion of the KV that was written.

        Raises
        ------
        ValueError : one line, if the bytes are damaged.
        """
        done = self._expand(received, table, cut)
        if self._pool.data.device.type == "cuda":
            torch.cuda.synchronize()  # else its time would count in the next iteration
        return done

    def _expand(self, received: Received, table: list[int], cut: int) -> tuple[int, float]:
        offer, prompt = received.offer, table[: self._pool.layout.blocks_for(received.offer.tokens)]
        if len(groups := spans_of(offer, self._pool.layout.model.layers)) > 1:
            return self._expand_layers(received, prompt, groups)
        if offer.mode == "raw":
            if isinstance(received.sink, BufferSink):  # other sinks have written into the pool already
                put_raw(received.sink.data, self._pool, prompt, offer.tokens)
            return offer.first_token, 0.0
        assert isinstance(received.sink, BufferSink)
        data = memoryview(received.sink.data)[: offer.ends[cut]]
        if offer.mode == "lossless":
            lossless_stream.expand(data, self._pool, prompt)
            return offer.first_token, 0.0
        return offer.first_token, self._codec.expand(data, self._pool, prompt).distortion

    def _expand_layers(self, received: Received, prompt: list[int], spans: list[Span]) -> tuple[int, float]:
        sink, size, layers, groups = received.sink, received.payload_bytes, self._pool.layout.model.layers, len(spans)
        if isinstance(sink, RawSink):
            return LayerFooter(sink.footer, groups, size).first_token, 0.0
        assert isinstance(sink, BufferSink)
        if [group.span for group in self._groups] != spans:
            self._groups = [LayerGroup(self._codec, span) for span in spans]
        data = memoryview(sink.data)[:size]
        footer = LayerFooter(data[-footer_bytes(groups) :], groups, size)
        distortion = 0.0
        for group, (start, stop) in zip(self._groups, footer.sections, strict=True):
            left = group.expand(data[start:stop], self._pool, prompt, received.offer.tokens)
            distortion += left * (group.stop - group.first) / layers
        return footer.first_token, distortion
