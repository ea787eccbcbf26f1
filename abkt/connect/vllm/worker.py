"""The worker side: the caches, the codec, the receiver, an outbox and an inbox. Runs beside the model, in each worker process."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from abkt.codec.calibration import Calibration, load
from abkt.codec.codec import Codec
from abkt.connect.vllm.ask import Ask
from abkt.connect.vllm.handshake import Handshake, fingerprint
from abkt.connect.vllm.inbox import Inbox
from abkt.connect.vllm.layout import CODEC_TOKENS, PagedKV
from abkt.connect.vllm.links import Links
from abkt.connect.vllm.metadata import StepWork
from abkt.connect.vllm.outbox import Outbox
from abkt.connect.vllm.settings import Settings
from abkt.connect.vllm.stats import Counters
from abkt.connect.vllm.trace import Trace
from abkt.spec import KVLayout
from abkt.transfer.pieces import BufferSink, ByteSink
from abkt.transfer.protocol.channel import Keepalive
from abkt.transfer.protocol.key import find_key
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.receive.received import Received
from abkt.transfer.receive.receiver import Receiver
from abkt.transfer.send.sender import Sender
from abkt.transfer.transports.registry import make_transport

KEEPALIVE = Keepalive(ping_s=2.0, silence_s=8.0, greet_s=8.0, resume_s=8.0, hold_s=12.0)  # the model may hold the interpreter for seconds
NAP_S = 0.005  # a step without tokens waits this long for a load, so that the engine does not spin

log = logging.getLogger(f"vllm.{__name__}")


class WorkerSide:
    """The connector of one worker. `step`, `poll` and `close` are called by the engine's thread.

    Parameters
    ----------
    settings : the server's settings.
    paged : the worker's caches.
    rank, tp : TP rank and size.
    rope_theta : base of the model's rotary embedding, if it has one.

    Attributes
    ----------
    handshake : what the scheduler is told.

    Raises
    ------
    ValueError : one line, if the worker cannot listen, or the key or calibration cannot be used.
    """

    def __init__(self, settings: Settings, paged: PagedKV, rank: int = 0, tp: int = 1, rope_theta: float | None = None) -> None:
        spec = paged.spec
        layout = KVLayout(spec, paged.blocks * paged.block_tokens // CODEC_TOKENS, CODEC_TOKENS)
        calibration = of_rank(load(Path(settings.calibration)), rank, spec.kv_heads) if settings.calibration else None
        self._codec = Codec(layout, rope_theta=rope_theta, calibration=calibration)
        self._transport, self._key = make_transport("tcp"), find_key(settings.key_file, settings.encrypt)
        self._print = fingerprint(spec, paged.block_tokens, tp)
        self.counters = Counters()
        self._trace = Trace(settings.trace and settings.trace + (f".{rank}" if rank else ""))
        self._data, self._asks = Links(self._sender), Links(self._sender)
        self._name = f"{settings.host} rank {rank}"
        self._work = StepWork()
        self._outbox = Outbox(paged, self._codec, settings, self._data, self.counters, self._trace, self._weights)
        self._inbox = Inbox(paged, self._codec, settings, self._asks, self.counters, self._trace, rank)
        try:
            self._receiver = Receiver(
                self._transport,
                f"{settings.host}:{settings.port + rank if settings.port else 0}",
                Hello(self._name, self._print),
                self._accept,
                self._committed,
                self._aborted,
                KEEPALIVE,
                key=self._key,
                on_refined=lambda received, cut: self._inbox.refined(received),
                on_settled=self._inbox.refined,
            )
        except ValueError:
            self._outbox.close()
            self._inbox.close()
            raise
        self._inbox.address, self._outbox.changed = self._receiver.address, self._receiver.memory_freed
        self.handshake = Handshake(self._receiver.address, self._print)
        log.info("AbktConnector listens at %s: %s; %s", self._receiver.address, self._print, self._codec.describe())

    def step(self, work: StepWork) -> None:
        """Begin the work of a step; nothing here waits for the network."""
        self._work = work
        if work.requests:
            self._trace.write("step", begin_s=time.monotonic(), requests=work.requests)
        for request_id in work.ended:
            self._inbox.end(request_id)
        self._inbox.refine(work.ended)
        for request_id, send in work.sends.items():
            self._outbox.add(request_id, send)
        for request_id, wanted in work.loads.items():
            self._inbox.start(request_id, wanted)
        for remote in work.releases:
            self._inbox.release(remote)

    def poll(self) -> tuple[set[str], set[str], set[int]]:
        """(requests that were sent, requests whose load has ended, blocks whose load has failed) since the last call."""
        nap_s = NAP_S if self._work.idle else 0.0
        sent = self._outbox.take_sent(nap_s)
        finished, bad = self._inbox.poll(0.0 if sent else nap_s)
        return sent, finished, bad

    def close(self) -> None:
        """End every transfer, connection and thread."""
        self._receiver.close()
        self._asks.close()
        self._data.close()
        self._inbox.close()
        self._outbox.close()
        self._trace.close()

    def _sender(self, address: str) -> Sender:
        return Sender(self._transport, address, Hello(self._name, self._print), keepalive=KEEPALIVE, key=self._key)

    def _accept(self, peer: str, offer: Offer) -> ByteSink | None:
        ask = Ask.of(offer)
        if ask is None:
            return self._inbox.accept(offer)
        if ask.ask == "fetch" and not self._outbox.known(ask):
            return None
        return BufferSink(offer.size)

    def _committed(self, received: Received) -> None:
        ask = Ask.of(received.offer)
        if ask is None:
            self._inbox.commit(received)
        else:
            self._outbox.take(ask)

    def _aborted(self, received: Received, reason: str) -> None:
        if Ask.of(received.offer) is None:
            self._inbox.abort(received, reason)

    def _weights(self, tokens: int) -> torch.Tensor | None:
        """The weights of a sequence's cells: the heads' sensitivities, if there is a calibration. vLLM does not show queries."""
        calibration = self._codec.calibration
        cells = self._codec.cells(tokens)
        if calibration is None or not cells.count:
            return None
        heads = torch.from_numpy(calibration.sensitivity).float()[..., None]
        weights = heads.repeat_interleave(cells.shape[2] // heads.shape[2], 2).expand(cells.shape).contiguous()
        return weights / weights.mean()


def of_rank(calibration: Calibration, rank: int, kv_heads: int) -> Calibration:
    """The part of a calibration that concerns the heads of a TP rank."""
    heads = calibration.sensitivity.shape[2]
    if heads <= kv_heads or heads % kv_heads:
        return calibration  # Codec compares the shapes
    first = rank % (heads // kv_heads) * kv_heads
    own = slice(first, first + kv_heads)
    return replace(
        calibration,
        sensitivity=np.ascontiguousarray(calibration.sensitivity[:, :, own]),
        levels=np.ascontiguousarray(calibration.levels[:, :, own]),
    )


def rope_theta_of(config: Mapping[str, Any]) -> float | None:
    """The base of the rotary embedding in a model's configuration, plainly rotary or None: scaled frequencies would predict wrongly."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        return None
    theta = rope.get("rope_theta", config.get("rope_theta"))
    return float(theta) if theta else None
