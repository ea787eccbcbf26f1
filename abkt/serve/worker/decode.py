"""A worker in the decode role: it receives KV, expands it between two iterations, and decodes with continuous batching.

The field `more` of a transfer's offer says what to generate (`Generation`), how the layers are grouped, and the expected size.
"""

from __future__ import annotations

import logging
import time
from collections import deque

from abkt.serve.commands import (
    CancelAttempt,
    ChangeRole,
    FinishAttempt,
    Prepare,
    ReportIterations,
    StartDecodeRun,
    WorkerCommand,
    WorkerConfig,
)
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.generation import Generation
from abkt.serve.reports import AttemptCancelled, AttemptFailed, DecodeIterations, Prepared, StreamedTokens
from abkt.serve.worker.control import Control
from abkt.serve.worker.equipment import Equipment
from abkt.serve.worker.events import FrontendGone, KVArrived, RefinementSettled, WorkerEvent
from abkt.serve.worker.expander import Expander
from abkt.serve.worker.layered import RawSink, Span, footer_bytes, spans_of
from abkt.serve.worker.memory import DecodeMemory
from abkt.serve.worker.nic import WorkerNic
from abkt.serve.worker.raw import fingerprint, raw_sink
from abkt.serve.worker.refining import KVQuality
from abkt.serve.worker.running import RunningRequest
from abkt.spec import KVLayout
from abkt.transfer.pieces import BufferSink, ByteSink
from abkt.transfer.protocol.key import find_key
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.receive.received import Received
from abkt.transfer.receive.receiver import Receiver
from abkt.transfer.transports.registry import listening_address, make_transport

ITERATIONS_KEPT = 20_000
ENDED_KEPT = 1024

log = logging.getLogger(__name__)


class DecodeWorker:
    """Receives, expands and decodes. Only its main loop (`serve`) computes; the receiver's threads reserve memory and post arrivals.

    Parameters
    ----------
    config : this worker's configuration.
    control : the connection to its frontend.
    equipment : the model, the pool and the codec.

    Attributes
    ----------
    receiver : accepts transfers from the start; prefill workers connect to its `address`.
    arrived : complete transfers that wait for a place in the batch.
    batch : the requests being decoded, at most config.max_batch.
    """

    def __init__(self, config: WorkerConfig, control: Control, equipment: Equipment) -> None:
        self.config, self.control, self.equipment = config, control, equipment
        self.engine = equipment.engine
        self.memory = DecodeMemory(self.engine.layout, equipment.segments)
        self.nic = WorkerNic()
        self.arrived: deque[Received] = deque()
        self.batch: list[RunningRequest] = []
        self.iterations: list[tuple[int, int, float]] = []
        self.ended: dict[int, None] = {}  # attempts whose client wants no further token, and which have not joined the batch
        self.origin_s = 0.0
        self._expander = Expander(self.engine.pool, equipment.codec)
        self.receiver = Receiver(
            make_transport(config.transport),
            listening_address(config.transport, config.host, config.sockets, config.name),
            Hello(config.name, fingerprint(self.engine.layout)),
            self._accept,
            self._committed,
            self._aborted,
            key=find_key(config.key_file, config.encrypt),
            price=self._price,
            on_refined=lambda received, cut: None,  # the main loop checks the cut between two iterations
            on_settled=lambda received: self.control.inbox.put(RefinementSettled(received)),
        )

    def serve(self) -> str:
        """Run until the frontend changes the role. Returns the new role, or "" if the frontend is gone."""
        while True:
            while not self.control.inbox.empty() or not (self.batch or self.arrived):
                message = self.control.inbox.get()
                if isinstance(message, ChangeRole | FrontendGone):
                    self.receiver.close()
                    return message.role if isinstance(message, ChangeRole) else ""
                self._handle(message)
            with self.equipment.device_lock:
                while self.arrived and len(self.batch) < self.config.max_batch:
                    self._join(self.arrived.popleft())
                self._report_done()  # requests whose client had what it wants before they joined
                self._swap()
                self._iterate()

    def _handle(self, message: WorkerCommand | WorkerEvent) -> None:
        match message:
            case Prepare():
                self.equipment.prepare(message.tokens)
                self.control.say(Prepared())
            case StartDecodeRun():
                self.origin_s = message.origin_s
                self.nic.reset(max(message.network.bytes_per_s))
                self.iterations.clear()
            case KVArrived():
                self._arrive(message.received)
            case RefinementSettled():
                self._settle(message.received)
            case CancelAttempt():
                self._cancel(message.attempt_id)
            case FinishAttempt():
                self._end(message.attempt_id)
            case ReportIterations():
                self.control.say(DecodeIterations(tuple(self.iterations)))
            case _:  # a command for the worker's earlier role, such as RefinementEnded
                pass

    def _arrive(self, received: Received) -> None:
        if self.memory.cancelled(received.offer.request_id):
            self._forget(received)
            self._release(received.offer.request_id)
        else:
            self.arrived.append(received)

    def _cancel(self, attempt_id: int) -> None:
        """Report AttemptCancelled once all its memory is free. A transfer in progress is completed first and then dropped."""
        holds = self.memory.cancel(attempt_id)
        running = next((running for running in self.batch if running.attempt_id == attempt_id), None)
        received = next((received for received in self.arrived if received.offer.request_id == attempt_id), None)
        if running:
            running.quality.close()
            self.batch.remove(running)
        if received:
            self._forget(received)
            self.arrived.remove(received)
        if running or received:
            self._release(attempt_id)
        elif not holds:
            self.control.say(AttemptCancelled(attempt_id))

    def _end(self, attempt_id: int) -> None:
        """End the output of an attempt with the tokens it has; one that is still to join ends as soon as it joins."""
        if running := next((running for running in self.batch if running.attempt_id == attempt_id), None):
            running.ended = True
        else:  # it may also be done already, so the oldest are forgotten
            self.ended[attempt_id] = None
            if len(self.ended) > ENDED_KEPT:
                del self.ended[next(iter(self.ended))]

    def _join(self, received: Received) -> None:
        """Expand an arrived transfer and add its request to the batch."""
        offer, table = received.offer, self.memory.table(received.offer.request_id)
        start_s, cut = time.monotonic(), received.cut
        try:
            first_token, distortion = self._expander.expand(received, table, cut)
        except ValueError as error:
            self._refuse(received, str(error))
            return
        quality = KVQuality(received if received.refinable else None, cut, distortion)
        row, generation = SequenceRow(table, offer.tokens), Generation.of(offer.more)
        running = RunningRequest(offer.request_id, generation, table, row, [first_token], received.committed_s, quality)
        if not received.refining:
            self._free(received.transfer_id)
        running.expand_end_s = time.monotonic()
        running.expand_busy_s = running.expand_end_s - start_s
        running.ended = offer.request_id in self.ended
        self.batch.append(running)

    def _refuse(self, received: Received, damage: str) -> None:
        """Fail a request whose frames are intact but cannot be expanded. The other requests continue."""
        attempt_id, reason = received.offer.request_id, f"the KV that arrived is damaged: {damage}"
        log.warning("request %d: %s", attempt_id, reason)
        self._forget(received)
        self._release(attempt_id)
        self.control.say(AttemptFailed(attempt_id, reason))

    def _swap(self) -> None:
        """Write better values into the pool, for one request at a time, so that the others do not wait long for their next token."""
        if better := [running for running in self.batch if running.quality.better]:
            self._refine(max(better, key=lambda running: running.tokens_left))

    def _refine(self, running: RunningRequest) -> None:
        received, start_s = running.quality.received, time.monotonic()
        assert received is not None
        cut = received.cut
        try:
            _, distortion = self._expander.expand(received, running.table, cut)
        except ValueError as error:  # nothing was written, so decoding continues with the present values
            log.warning("request %d: its refinement is damaged: %s", running.attempt_id, error)
            running.quality.close()
            return
        end_s = time.monotonic()
        running.quality.swapped(end_s - self.origin_s, cut, distortion)
        running.expand_busy_s += end_s - start_s

    def _settle(self, received: Received) -> None:
        """End a refinement: write the last values if the request is still being decoded, and free the codes."""
        for running in [each for each in self.batch if each.quality.received is received]:
            if running.quality.better:
                self._refine(running)
            running.quality.settle()
        if received not in self.arrived:
            self._free(received.transfer_id)

    def _forget(self, received: Received) -> None:
        """Drop a transfer that will not be decoded."""
        received.decline()
        if not received.refinable:
            self._free(received.transfer_id)

    def _free(self, transfer_id: int) -> None:
        """Free the codes of a transfer."""
        self.memory.codes.free(transfer_id)
        self.receiver.memory_freed()

    def _release(self, attempt_id: int) -> None:
        """Free the blocks of an attempt."""
        self.ended.pop(attempt_id, None)
        cancelled = self.memory.release(attempt_id)
        self.receiver.memory_freed()
        if cancelled:
            self.control.say(AttemptCancelled(attempt_id))

    def _iterate(self) -> None:
        """Decode one token of each request in the batch."""
        if not self.batch:  # all arrived transfers were damaged, or have ended
            return
        start_s = time.monotonic()
        context = sum(running.row.tokens for running in self.batch)
        last = [running.tokens[-1] for running in self.batch]
        samplings = [running.generation.sampling for running in self.batch]
        choices = self.engine.step([running.row for running in self.batch], last, samplings)
        end_s = time.monotonic()
        if len(self.iterations) < ITERATIONS_KEPT:
            self.iterations.append((len(self.batch), context, end_s - start_s))
        for running, choice in zip(self.batch, choices, strict=True):
            running.decoded(choice, start_s, end_s)
        pairs = zip(self.batch, choices, strict=True)
        streamed = [(running, choice) for running, choice in pairs if running.generation.stream and not running.done]
        if streamed:
            self.control.say(StreamedTokens(tuple((each.attempt_id, each.tokens[-1], choice.logprobs) for each, choice in streamed)))
        self._report_done()

    def _report_done(self) -> None:
        """Free and report the requests of the batch that are done."""
        end_s = time.monotonic()
        for running in [running for running in self.batch if running.done]:
            self.batch.remove(running)
            self._release(running.attempt_id)
            running.quality.close()
            self.control.say(running.finished(self.origin_s, end_s))

    def _accept(self, peer: str, offer: Offer) -> ByteSink | None:
        """Reserve blocks for a prompt and its output; None if there are too few. Called by receiver threads."""
        layout = self.engine.layout
        generation, groups = check_offer(offer, layout)
        table = self.memory.reserve(offer, offer.tokens + generation.osl)
        if table is None:
            return None
        expected = offer.more.get("expected_bytes", offer.size)
        self.nic.enter(self._now_s(), offer.request_id, float(expected) if isinstance(expected, int | float) else offer.size)
        if offer.mode != "raw":
            return BufferSink(offer.size)
        prompt = table[: layout.blocks_for(offer.tokens)]
        if len(groups) > 1:
            return RawSink(self.engine.pool, prompt, offer.tokens, groups)
        return raw_sink(self.engine.pool, prompt, offer.tokens, self.config.transport)

    def _price(self, arrived_bytes: int) -> float:
        """The price of a byte at this end. Called by receiver threads."""
        self.nic.passed(self._now_s(), arrived_bytes)
        return self.nic.per_byte()

    def _now_s(self) -> float:
        return time.monotonic() - self.origin_s

    def _committed(self, received: Received) -> None:
        self.nic.leave(received.transfer_id)
        if received.refinable:
            self.memory.codes.keep(received)
        self.control.inbox.put(KVArrived(received))

    def _aborted(self, received: Received, reason: str) -> None:
        self.nic.leave(received.transfer_id)
        self._free(received.transfer_id)
        self._release(received.offer.request_id)


def check_offer(offer: Offer, layout: KVLayout) -> tuple[Generation, list[Span]]:
    """(what to generate, groups of layers in the transfer). Raises ValueError, one line, if the offer does not fit this worker."""
    generation, groups, layers = Generation.of(offer.more), spans_of(offer, layout.model.layers), layout.model.layers
    if generation.osl < 2 or layout.blocks_for(offer.tokens + generation.osl) > layout.blocks:
        raise ValueError(
            f"request {offer.request_id} of {offer.tokens} tokens and osl {generation.osl} does not fit a pool of {layout.blocks} blocks"
        )
    if not groups or (len(groups) > 1 and offer.mode == "lossless"):
        ends = offer.more.get("layer_ends")
        raise ValueError(
            f"request {offer.request_id}: groups of layers that end at {ends} do not divide {layers} layers, or it is lossless"
        )
    footer = footer_bytes(len(groups)) if len(groups) > 1 else 0
    if offer.mode == "raw" and offer.size != layout.kept_bytes(offer.tokens) + footer:
        raise ValueError(f"request {offer.request_id}: raw KV of {offer.tokens} tokens is not {offer.size} bytes here")
    return generation, groups
