"""A worker in the role of decode: takes KV in, expands it at iteration boundaries, decodes in continuous batches.

An offer says in `more`: osl, how to sample, stop (a token that ends it; -1: none), stream (whether each token is told as it comes).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from abkt.serve.control import Control, Message, WorkerConfig
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.sampling import GREEDY, Sampling
from abkt.serve.worker.equipment import Equipment
from abkt.serve.worker.expander import Expander
from abkt.serve.worker.layered import RawSink, footer_bytes, groups_of
from abkt.serve.worker.nic import WorkerNic
from abkt.serve.worker.raw import fingerprint, raw_sink
from abkt.serve.worker.refining import Codes, Quality
from abkt.transfer.pieces import BufferSink, ByteSink
from abkt.transfer.protocol.key import find_key
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.receive.received import Received
from abkt.transfer.receive.receiver import Receiver
from abkt.transfer.transports.registry import listening_address, make_transport

ITERATIONS_KEPT = 20_000

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Running:
    """A request on this side: its blocks, what it produced, and when its stages were (CLOCK_MONOTONIC until they are told)."""

    request_id: int
    osl: int
    table: list[int]
    row: SequenceRow
    tokens: list[int]
    received_s: float
    expand_busy_s: float = 0.0
    expand_end_s: float = 0.0
    decode_token_s: float = 0.0
    decode_busy_s: float = 0.0
    sampling: Sampling = GREEDY
    stop: int = -1
    stream: bool = False
    margins: list[float] = field(default_factory=list)
    quality: Quality = field(default_factory=lambda: Quality(None, 0, 0.0))

    @property
    def done(self) -> bool:
        return len(self.tokens) >= self.osl or self.tokens[-1] == self.stop


class DecodeWorker:
    """The receiver's threads reserve memory and put what has arrived into the control's inbox; only the main loop computes."""

    def __init__(self, config: WorkerConfig, control: Control, equipment: Equipment) -> None:
        self.config = config
        self.control = control
        self.equipment = equipment
        self.engine, self.codec, self.segments = equipment.engine, equipment.codec, equipment.segments
        self._memory = threading.Lock()
        self._expander = Expander(self.engine.pool, self.codec)
        self._tables: dict[int, list[int]] = {}  # by transfer id, from the offer to the last token
        self.arrived: deque[Received] = deque()
        self.batch: list[Running] = []
        self.unwanted: set[int] = set()  # cancelled while it came, or before; under the memory's lock
        self.iterations: list[tuple[int, int, float]] = []
        self.origin_s = 0.0
        hello = Hello(config.name, fingerprint(self.engine.layout))
        key = find_key(config.key_file, config.encrypt)
        self.nic = WorkerNic()
        self.codes = Codes(self.engine.layout.blocks * self.engine.layout.block_bytes)
        self.receiver = Receiver(
            make_transport(config.transport),
            listening_address(config.transport, config.host, config.sockets, config.name),
            hello,
            self._accept,
            self._committed,
            self._aborted,
            key=key,
            price=self._price,
            on_refined=lambda received, cut: None,  # the main loop looks at the cut between two iterations
            on_settled=lambda received: self.control.inbox.put({"op": "settled", "received": received}),
        )

    def serve(self) -> str:
        """Until there is another role to take, which is returned, or nothing more to do: empty."""
        while True:
            while not self.control.inbox.empty() or not (self.batch or self.arrived):
                message = self.control.inbox.get()
                if message["op"] in ("role", "stop"):
                    self.receiver.close()
                    return str(message.get("role", ""))
                self._handle(message)
            with self.equipment.turn:
                while self.arrived and len(self.batch) < self.config.max_batch:
                    self._join(self.arrived.popleft())
                self._swap()
                self._iterate()

    def _handle(self, message: Message) -> None:
        match message["op"]:
            case "prepare":
                self.equipment.prepare(message["tokens"])
                self.control.say("prepared")
            case "run":
                self.origin_s = message["origin_s"]
                self.nic.reset(max(message["network"]["bytes_per_s"]))
                self.iterations.clear()
            case "arrived":
                self._arrive(message["received"])
            case "settled":
                self._settle(message["received"])
            case "cancel":
                self._cancel(message["request_id"])
            case "report":
                self.control.say("iterations", iterations=self.iterations)

    def _arrive(self, received: Received) -> None:
        if received.offer.request_id in self.unwanted:
            self._forget(received)
            self._release(received.offer.request_id)
        else:
            self.arrived.append(received)

    def _cancel(self, request_id: int) -> None:
        """Nobody waits for it any more. Says `gone` once nothing of it is held; what is on its way is let come first, and dropped then."""
        running, arrived = len(self.batch), len(self.arrived)
        for each in self.batch:
            if each.request_id == request_id:
                each.quality.close()
        for received in self.arrived:
            if received.offer.request_id == request_id:
                self._forget(received)
        self.batch = [each for each in self.batch if each.request_id != request_id]
        self.arrived = deque(each for each in self.arrived if each.offer.request_id != request_id)
        with self._memory:
            self.unwanted.add(request_id)
            coming = request_id in self._tables
        if (len(self.batch), len(self.arrived)) != (running, arrived):
            self._release(request_id)
        elif not coming:
            self.control.say("gone", request_id=request_id)

    def _join(self, received: Received) -> None:
        """Expand what has arrived and put the request into the batch."""
        offer, table = received.offer, self._tables[received.transfer_id]
        start_s, cut = time.monotonic(), received.cut
        try:
            first_token, distortion = self._expander.expand(received, table, cut)
        except ValueError as error:
            self._refuse(received, str(error))
            return
        running = Running(
            offer.request_id, int(offer.more["osl"]), table, SequenceRow(table, offer.tokens), [first_token], received.committed_s
        )
        running.sampling = Sampling.of(offer.more)
        running.stop, running.stream = int(offer.more.get("stop", -1)), bool(offer.more.get("stream", False))
        running.quality = Quality(received if received.refinable else None, cut, distortion)
        if not received.refining:
            self._free(received.transfer_id)
        running.expand_end_s = time.monotonic()
        running.expand_busy_s = running.expand_end_s - start_s
        self.batch.append(running)

    def _refuse(self, received: Received, reason: str) -> None:
        """What a peer has sent is damaged, though every frame of it was whole: its request fails, the others go on."""
        request_id = received.offer.request_id
        log.warning("request %d: what has come is damaged: %s", request_id, reason)
        self._forget(received)
        self._release(request_id)
        self.control.say("failed", request_id=request_id, reason=f"what has come is damaged: {reason}")

    def _swap(self) -> None:
        """Better values, between two iterations; of one request at a time, so that the others do not wait long for their tokens."""
        if better := [running for running in self.batch if running.quality.better]:
            self._refine(max(better, key=lambda running: running.osl - len(running.tokens)))

    def _refine(self, running: Running) -> None:
        received, start_s = running.quality.received, time.monotonic()
        assert received is not None
        cut = received.cut
        try:
            _, distortion = self._expander.expand(received, running.table, cut)
        except ValueError as error:  # nothing of it was written: decoding goes on with what it has
            log.warning("request %d: what has come behind its start is damaged: %s", running.request_id, error)
            running.quality.close()
            return
        end_s = time.monotonic()
        running.quality.swapped(end_s - self.origin_s, cut, distortion)
        running.expand_busy_s += end_s - start_s

    def _settle(self, received: Received) -> None:
        """Nothing follows any more: the last values go into the pool, if anyone is left to read them, and the codes away."""
        for running in [each for each in self.batch if each.quality.received is received]:
            if running.quality.better:
                self._refine(running)
            running.quality.settle()
        if received not in self.arrived:
            self._free(received.transfer_id)

    def _forget(self, received: Received) -> None:
        """Nobody will decode it."""
        received.decline()
        if not received.refinable:
            self._free(received.transfer_id)

    def _free(self, number: int) -> None:
        self.codes.free(number)
        self.receiver.memory_freed()

    def _iterate(self) -> None:
        """One token for each request of the batch."""
        start_s = time.monotonic()
        context = sum(running.row.tokens for running in self.batch)
        last = [running.tokens[-1] for running in self.batch]
        choices = self.engine.step([running.row for running in self.batch], last, [running.sampling for running in self.batch])
        end_s = time.monotonic()
        if len(self.iterations) < ITERATIONS_KEPT:
            self.iterations.append((len(self.batch), context, end_s - start_s))
        for running, choice in zip(self.batch, choices, strict=True):
            running.decode_token_s = running.decode_token_s or end_s
            running.tokens.append(choice.token)
            running.margins.append(choice.margin)
            running.decode_busy_s += end_s - start_s
            running.quality.decoded()
        if streams := {running.request_id: running.tokens[-1] for running in self.batch if running.stream and not running.done}:
            self.control.say("tokens", tokens=list(streams.items()))
        for running in [r for r in self.batch if r.done]:
            self.batch.remove(running)
            self._finish(running, end_s)

    def _finish(self, running: Running, finish_s: float) -> None:
        self._release(running.request_id)
        quality = running.quality
        quality.close()
        self.control.say(
            "finished",
            request_id=running.request_id,
            received_s=running.received_s - self.origin_s,
            expand_end_s=running.expand_end_s - self.origin_s,
            expand_busy_s=running.expand_busy_s,
            decode_token_s=running.decode_token_s - self.origin_s,
            decode_busy_s=running.decode_busy_s,
            finish_s=finish_s - self.origin_s,
            tokens=running.tokens,
            margins=running.margins,
            distortion_start=quality.start,
            distortion_final=quality.distortion,
            distortion_token_weighted=quality.token_weighted,
            swaps=quality.swaps,
            refine_bytes=quality.refine_bytes,
            refine_finish_s=quality.refine_end_s - self.origin_s if quality.refine_bytes else None,
        )

    def _accept(self, peer: str, offer: Offer) -> ByteSink | None:
        """Reserve blocks for the prompt and all that will be produced; None while there are too few. Called by receiver threads."""
        layout = self.engine.layout
        osl = offer.more.get("osl")
        if not isinstance(osl, int) or osl < 2 or layout.blocks_for(offer.tokens + osl) > layout.blocks:
            raise ValueError(
                f"request {offer.request_id} of {offer.tokens} tokens and osl {osl} does not fit a pool of {layout.blocks} blocks"
            )
        Sampling.of(offer.more)
        groups = groups_of(offer)
        if not 1 <= groups <= layout.model.layers or (groups > 1 and offer.mode == "lossless"):
            raise ValueError(f"request {offer.request_id} comes in {groups} groups of the {layout.model.layers} layers here")
        footer = footer_bytes(groups) if groups > 1 else 0
        if offer.mode == "raw" and offer.size != layout.blocks_for(offer.tokens) * layout.block_bytes + footer:
            raise ValueError(f"request {offer.request_id}: raw KV of {offer.tokens} tokens is not {offer.size} bytes here")
        with self._memory:
            blocks = layout.blocks_for(offer.tokens + osl)
            if offer.request_id in self._tables or offer.request_id in self.unwanted:
                raise ValueError(f"request {offer.request_id} is here already, or was cancelled")
            if not self.segments.can_allocate(blocks):
                return None
            if offer.mode != "raw" and not self.codes.hold(offer.request_id, offer.size):
                return None
            table = self._tables[offer.request_id] = self.segments.allocate(blocks)
        expected = offer.more.get("expected_bytes", offer.size)
        self.nic.enter(self._now_s(), offer.request_id, float(expected) if isinstance(expected, int | float) else offer.size)
        if offer.mode == "raw":
            prompt = table[: layout.blocks_for(offer.tokens)]
            if groups > 1:
                return RawSink(self.engine.pool, prompt, groups)
            return raw_sink(self.engine.pool, prompt, self.config.transport)
        return BufferSink(offer.size)

    def _price(self, came_bytes: int) -> float:
        """What a byte costs at this end. Called by receiver threads."""
        self.nic.passed(self._now_s(), came_bytes)
        return self.nic.per_byte()

    def _now_s(self) -> float:
        return time.monotonic() - self.origin_s

    def _committed(self, received: Received) -> None:
        self.nic.leave(received.transfer_id)
        if received.refinable:
            self.codes.keep(received)
        self.control.inbox.put({"op": "arrived", "received": received})

    def _aborted(self, received: Received, reason: str) -> None:
        self.nic.leave(received.transfer_id)
        self._free(received.transfer_id)
        self._release(received.offer.request_id)

    def _release(self, request_id: int) -> None:
        with self._memory:
            self.segments.free(self._tables.pop(request_id))
            unwanted = request_id in self.unwanted
        self.receiver.memory_freed()
        if unwanted:
            self.control.say("gone", request_id=request_id)
