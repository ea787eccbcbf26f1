"""A prefill side and a decode side in one process: a pool each, the same weights, the real sender and receiver between them on loopback.

Not modelled: other requests (one at a time goes through, so nothing waits for anything but its own stages), and what a policy sends behind
the start: an answer is given from what was there when decoding began.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

import torch

from abkt.capacity import Capacity
from abkt.codec.codec import Codec
from abkt.codec.importance import Importance
from abkt.codec.lossless import stream as lossless_stream
from abkt.codec.stream import Stream
from abkt.policy.build import build
from abkt.policy.view import BitratePolicy, CoderName, Decision, Delivered, GoodputSample, TransferView
from abkt.profile.expect import unmeasured_view
from abkt.serve.engine.engine import Engine
from abkt.serve.worker.raw import put_raw, raw_sink, raw_source
from abkt.transfer.link import PacedLink
from abkt.transfer.pieces import BufferSink, ByteSink, ByteSource, PiecesSource
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.receive.received import Received
from abkt.transfer.receive.receiver import Receiver
from abkt.transfer.send.outgoing import Outgoing, Sent
from abkt.transfer.send.sender import Sender
from abkt.transfer.transports.tcp import Tcp
from experiments.lib.errors import RunError

PATIENCE_S = 30.0  # for the end of a transfer that the sender says is complete


@dataclass(frozen=True, slots=True)
class Travelled:
    """The KV of a prompt on the decode side. Seconds of each stage; wire_s from the offer until all is there. distortion: as measured by
    the codec at the cut that was sent; 0 of raw and exact."""

    mode: str
    wire_bytes: int
    distortion: float
    encode_s: float
    wire_s: float
    expand_s: float

    @property
    def seconds(self) -> float:
        return self.encode_s + self.wire_s + self.expand_s


class TransferPair:
    """A context manager. engine: has the model and the prefill side's pool. capacity: of the link. calibration of the codec weighs cells.

    coder: of a stream. Raises ValueError for a policy that cannot be built.
    """

    def __init__(self, engine: Engine, codec: Codec, bitrate: Mapping[str, Any], capacity: Capacity, coder: CoderName = "fixed") -> None:
        self.prefill = engine
        self.decode = copy.copy(engine)  # the model is shared; the pool is its own
        self.decode.pool = type(engine.pool)(engine.layout, engine.device)
        self.codec = codec
        self.coder: CoderName = coder
        self.policy: BitratePolicy = build(bitrate)
        self.table = list(range(engine.layout.blocks))
        self._arrived: SimpleQueue[Received] = SimpleQueue()
        hello = Hello("prefill", repr(engine.layout.model))
        self._receiver = Receiver(
            Tcp(), "127.0.0.1:0", replace(hello, node="decode"), self._accept, self._arrived.put, lambda received, reason: None
        )
        self.origin_s = time.monotonic()
        self._sender = Sender(Tcp(), self._receiver.address, hello, PacedLink(capacity, origin_s=self.origin_s))
        self._count = 0

    def __enter__(self) -> TransferPair:
        return self

    def __exit__(self, *_: object) -> None:
        self._sender.close()
        self._receiver.close()

    def raw(self, tokens: int, first_token: int) -> Travelled:
        """As it is, whatever the policy would say; the policy learns nothing from it."""
        return self._travel(tokens, first_token, Decision("raw"), raw_source(self.prefill.pool, self._blocks(tokens)), 0.0)

    def coded(self, tokens: int, first_token: int, importance: Importance, deadline_s: float) -> Travelled:
        """As the policy decides. deadline_s: from now on, when KV should be usable."""
        raw_bytes = tokens * self.codec.layout.model.kv_bytes_per_token
        start_s = self._now_s()
        view = unmeasured_view(raw_bytes, start_s + deadline_s)
        if self.prefill.pool.data.device.type != "cpu":
            view.lossless_bytes = 0.0  # lossless messages are made on a CPU alone
        decision = self.policy.decide(start_s, view)
        source: ByteSource
        if decision.mode == "raw":
            source = raw_source(self.prefill.pool, self._blocks(tokens))
        elif decision.mode == "lossless":
            source = PiecesSource([lossless_stream.encode(self.prefill.pool, self.table, tokens)])
        else:
            weights = importance.weights(
                self.prefill.pool, self.table, self.codec.cells(tokens, decision.depth_bits), self.codec.calibration
            )
            source = self.codec.encode(self.prefill.pool, self.table, tokens, decision.depth_bits, decision.order, weights, self.coder)
            view = replace(view, slope=source.slope, uniform=source.uniform, raw_s=math.inf, lossless_bytes=0.0)
        return self._travel(tokens, first_token, decision, source, self._now_s() - start_s, view)

    def _travel(
        self, tokens: int, first_token: int, decision: Decision, source: ByteSource, encode_s: float, view: TransferView | None = None
    ) -> Travelled:
        """view: what the policy is asked with while bytes leave; None: it is not asked."""
        self._count += 1
        offer = Offer(self._count, decision.mode, tokens, tuple(int(end) for end in source.ends), first_token)
        outgoing = Outgoing(self._count, offer, source)
        if view is not None and decision.mode == "stream":
            finest = len(source.ends) - 1
            outgoing.next_cut = lambda now_s, sent_bytes, sent_cut: self._next_cut(view, finest, now_s, sent_bytes, sent_cut)
        if view is not None:
            outgoing.on_sent = lambda now_s, wire_bytes, duration_s: self.policy.observe(
                now_s - self.origin_s, GoodputSample(wire_bytes, duration_s)
            )
        start_s = time.monotonic()
        sent = self._sender.submit(outgoing).result()
        received = self._received(sent)
        distortion = source.curve.distortion[sent.cut] if isinstance(source, Stream) else 0.0
        if view is not None:
            self.policy.delivered(self._now_s(), Delivered(distortion, decision, view, encode_s + sent.acked_s - sent.granted_s))
        begin_s = time.monotonic()
        if decision.mode == "raw":
            if isinstance(received.sink, BufferSink):  # else it came into its place
                put_raw(received.sink.data, self.decode.pool, self._blocks(tokens))
        else:
            assert isinstance(received.sink, BufferSink)
            data = memoryview(received.sink.data)[: offer.ends[received.cut]]
            expand = lossless_stream.expand if decision.mode == "lossless" else self.codec.expand
            expand(data, self.decode.pool, self._blocks(tokens))
        if self.decode.pool.data.device.type == "cuda":
            torch.cuda.synchronize()
        expand_s = time.monotonic() - begin_s
        return Travelled(decision.mode, sent.wire_bytes, distortion, encode_s, received.committed_s - start_s, expand_s)

    def _next_cut(self, view: TransferView, finest: int, now_s: float, sent_bytes: int, sent_cut: int) -> int:
        now_s -= self.origin_s
        decision = self.policy.decide(now_s, replace(view, sent_bytes=sent_bytes, sent_cut=sent_cut))
        return decision.cut if decision.mode == "stream" else finest

    def _received(self, sent: Sent) -> Received:
        """Raises RunError where the transfer did not come through."""
        try:
            if not sent.error:
                return self._arrived.get(timeout=PATIENCE_S)
        except Empty:
            sent.error = f"not complete {PATIENCE_S:.0f} s after the sender was done"
        raise RunError(f"transfer {sent.transfer_id}: {sent.error}")

    def _accept(self, peer: str, offer: Offer) -> ByteSink:
        return raw_sink(self.decode.pool, self._blocks(offer.tokens)) if offer.mode == "raw" else BufferSink(offer.size)

    def _blocks(self, tokens: int) -> list[int]:
        return self.table[: self.prefill.layout.blocks_for(tokens)]

    def _now_s(self) -> float:
        return time.monotonic() - self.origin_s
