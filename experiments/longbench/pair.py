"""A prefill side and a decode side in one process: a pool each, the same weights, the real sender and receiver between them on loopback.

Not modelled: other requests (one request runs at a time, so it waits for its own stages only), and refinement: the answer is decoded from
the KV that had arrived when decoding began.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

import torch

from abkt.capacity import Capacity
from abkt.codec.baselines.base import Baseline
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

Expand = Callable[..., object]  # (message, pool, table)
PATIENCE_S = 30.0  # most seconds from the end of sending until the receiver has the transfer


@dataclass(frozen=True, slots=True)
class Transferred:
    """The transfer of a prompt's KV to the decode side. wire_s: seconds from the offer until all bytes have arrived. distortion: as the
    codec measured it at the cut that was sent; 0 for raw and lossless, nan for a published codec."""

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
    """A context manager: two pools with a sender and a receiver between them.

    Parameters
    ----------
    engine : the model and the prefill side's pool; the decode side gets a pool of its own and shares the model.
    codec : codec of the KV; its calibration gives the weights of the cells.
    bitrate : a policy as abkt.policy.build takes it.
    capacity : capacity of the link.
    coder : coder of a stream: fixed, entropy, or klt, which needs a calibration with a basis.

    Raises
    ------
    ValueError
        For a policy that cannot be built.
    """

    def __init__(self, engine: Engine, codec: Codec, bitrate: Mapping[str, Any], capacity: Capacity, coder: CoderName = "fixed") -> None:
        self.prefill = engine
        self.decode = copy.copy(engine)  # it shares the model and has its own pool
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

    def raw(self, tokens: int, first_token: int) -> Transferred:
        """Send the KV raw. The policy is not asked and does not see the transfer."""
        return self._transfer(tokens, first_token, Decision("raw"), raw_source(self.prefill.pool, self._blocks(tokens), tokens), 0.0)

    def coded(self, tokens: int, first_token: int, importance: Importance, deadline_s: float) -> Transferred:
        """Send the KV as the policy decides. deadline_s: seconds from now until the KV should be usable."""
        raw_bytes = tokens * self.codec.layout.model.kv_bytes_per_token
        start_s = self._now_s()
        view = unmeasured_view(raw_bytes, start_s + deadline_s)
        if self.prefill.pool.data.device.type != "cpu":
            view.lossless_bytes = 0.0  # lossless messages can only be made on a CPU
        decision = self.policy.decide(start_s, view)
        source: ByteSource
        if decision.mode == "raw":
            source = raw_source(self.prefill.pool, self._blocks(tokens), tokens)
        elif decision.mode == "lossless":
            source = PiecesSource([lossless_stream.encode(self.prefill.pool, self.table, tokens)])
        else:
            weights, of_tokens = None, None
            if self.coder == "klt":
                of_tokens = importance.tokens(self.prefill.pool, self.table, tokens)
            else:
                cells = self.codec.cells(tokens, decision.depth_bits)
                weights = importance.weights(self.prefill.pool, self.table, cells, self.codec.calibration)
            source = self.codec.encode(
                self.prefill.pool, self.table, tokens, decision.depth_bits, decision.order, weights, self.coder, importance=of_tokens
            )
            view = replace(view, slope=source.slope, uniform=source.uniform, raw_s=math.inf, lossless_bytes=0.0)
        return self._transfer(tokens, first_token, decision, source, self._now_s() - start_s, view)

    def message(self, tokens: int, first_token: int, importance: Importance, codec: Baseline) -> Transferred:
        """Send the KV as the one message of a published codec, which takes no importance. The policy does not see the transfer."""
        start_s = self._now_s()
        source = PiecesSource([codec.encode(self.prefill.pool, self._blocks(tokens), tokens)])
        encode_s = self._now_s() - start_s
        return self._transfer(tokens, first_token, Decision("lossless"), source, encode_s, expand=codec.expand, name=codec.name)

    def _transfer(
        self, tokens: int, first_token: int, decision: Decision, source: ByteSource, encode_s: float, view: TransferView | None = None,
        expand: Expand | None = None, name: str = "",
    ) -> Transferred:  # fmt: skip
        """Send the KV and wait for it.

        view: the transfer as the policy sees it when it chooses the next cut; None: it is not asked. expand, name: of a published codec,
        whose one message travels as a lossless one does; its distortion is unknown.
        """
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
            if isinstance(received.sink, BufferSink):  # else it was received into its place
                put_raw(received.sink.data, self.decode.pool, self._blocks(tokens), tokens)
        else:
            assert isinstance(received.sink, BufferSink)
            data = memoryview(received.sink.data)[: offer.ends[received.cut]]
            expand = expand or (lossless_stream.expand if decision.mode == "lossless" else self.codec.expand)
            expand(data, self.decode.pool, self._blocks(tokens))
        if self.decode.pool.data.device.type == "cuda":
            torch.cuda.synchronize()
        expand_s = time.monotonic() - begin_s
        distortion = math.nan if name else distortion
        return Transferred(name or decision.mode, sent.wire_bytes, distortion, encode_s, received.committed_s - start_s, expand_s)

    def _next_cut(self, view: TransferView, finest: int, now_s: float, sent_bytes: int, sent_cut: int) -> int:
        now_s -= self.origin_s
        decision = self.policy.decide(now_s, replace(view, sent_bytes=sent_bytes, sent_cut=sent_cut))
        return decision.cut if decision.mode == "stream" else finest

    def _received(self, sent: Sent) -> Received:
        """The received transfer. Raises RunError where it failed."""
        try:
            if not sent.error:
                return self._arrived.get(timeout=PATIENCE_S)
        except Empty:
            sent.error = f"not complete {PATIENCE_S:.0f} s after the sender was done"
        raise RunError(f"transfer {sent.transfer_id}: {sent.error}")

    def _accept(self, peer: str, offer: Offer) -> ByteSink:
        return raw_sink(self.decode.pool, self._blocks(offer.tokens), offer.tokens) if offer.mode == "raw" else BufferSink(offer.size)

    def _blocks(self, tokens: int) -> list[int]:
        return self.table[: self.prefill.layout.blocks_for(tokens)]

    def _now_s(self) -> float:
        return time.monotonic() - self.origin_s
