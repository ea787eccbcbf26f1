"""A worker in the prefill role: it computes a prompt's KV, asks the policy, encodes, and passes the bytes to the sender."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import replace

from abkt.codec.importance import Importance
from abkt.codec.lossless import stream as lossless_stream
from abkt.codec.stream import Stream
from abkt.policy.view import CoderName, Decision, TransferView
from abkt.serve.commands import (
    AddPeer,
    CancelAttempt,
    ChangeRole,
    Prepare,
    RefinementEnded,
    RemovePeer,
    StartPrefillRun,
    SubmitPrompt,
    WithdrawPrompts,
    WorkerCommand,
    WorkerConfig,
)
from abkt.serve.engine.sampling import Choice
from abkt.serve.reports import (
    AttemptFailed,
    BrokenTransfer,
    CodedCurves,
    PlannedTransfer,
    Prefilled,
    Prepared,
    PromptsWithdrawn,
    TransferSent,
)
from abkt.serve.worker.control import Control
from abkt.serve.worker.equipment import Equipment
from abkt.serve.worker.events import FrontendGone, TransferEnded, WorkerEvent
from abkt.serve.worker.layered import LayerGroup, spans
from abkt.serve.worker.layered_transfer import LayeredTransfer
from abkt.serve.worker.peer import OutboundTransfer
from abkt.serve.worker.raw import raw_source
from abkt.serve.worker.run import PrefillRun
from abkt.transfer.pieces import ByteSource, PiecesSource
from abkt.transfer.protocol.messages import Offer
from abkt.transfer.send.outgoing import Outgoing, Sent

log = logging.getLogger(__name__)


class PrefillWorker:
    """Computes one prompt at a time, in order of arrival. A prompt's blocks are kept until the decode worker has acknowledged its KV.

    Parameters
    ----------
    config : this worker's configuration.
    control : the connection to its frontend.
    equipment : the model, the pool and the codec.

    Attributes
    ----------
    run : the current run, with its policies and connections.
    waiting : prompts that have not been started.
    sending : attempt id -> transfer that the sender has not finished.
    """

    def __init__(self, config: WorkerConfig, control: Control, equipment: Equipment) -> None:
        self.config, self.control, self.equipment = config, control, equipment
        self.engine, self.codec, self.segments = equipment.engine, equipment.codec, equipment.segments
        self.waiting: deque[SubmitPrompt] = deque()
        self.sending: dict[int, Outgoing] = {}
        self.run = PrefillRun(config, self.engine.layout, self.engine.pool.data.device.type)
        layers = self.engine.layout.model.layers
        groups = spans(layers, min(config.layer_groups, layers), self.codec.layer_ends())
        self.groups = [LayerGroup(self.codec, span) for span in groups]
        if len(groups) < min(config.layer_groups, layers):
            log.warning("KV is sent in %d groups of layers: the calibration transforms layers together", len(groups))

    def serve(self) -> str:
        """Run until the frontend changes the role. Returns the new role, or "" if the frontend is gone."""
        while True:
            message = self.control.inbox.get()
            if isinstance(message, ChangeRole | FrontendGone):
                self.run.close()
                return message.role if isinstance(message, ChangeRole) else ""
            self._handle(message)
            while self.waiting and self.control.inbox.empty() and self._fits(self.waiting[0]):
                with self.equipment.device_lock:
                    self._prefill(self.waiting.popleft())

    def _handle(self, message: WorkerCommand | WorkerEvent) -> None:
        match message:
            case Prepare():
                self.equipment.prepare(message.tokens)
                self.control.say(Prepared())
            case StartPrefillRun():
                self.run.start(message)
            case AddPeer():
                self.run.add_peer(message.name, message.address)
            case RemovePeer():
                self.run.remove_peer(message.name)
            case SubmitPrompt():
                self.waiting.append(message)
            case CancelAttempt():
                self._cancel(message.attempt_id)
            case WithdrawPrompts():
                self.control.say(PromptsWithdrawn(tuple(prompt.attempt_id for prompt in self.waiting)))
                self.waiting.clear()
            case RefinementEnded():
                for peer in self.run.peers.values():
                    peer.refined(message.attempt_id, message.distortion_token_weighted)
            case TransferEnded():
                self.segments.free(message.table)
                self.sending.pop(message.attempt_id, None)
            case _:  # a command for the worker's earlier role
                pass

    def _cancel(self, attempt_id: int) -> None:
        """Report AttemptFailed, unless the attempt is over. A cancelled transfer makes this report itself."""
        if outgoing := self.sending.get(attempt_id):
            outgoing.cancel.set()
        for prompt in [prompt for prompt in self.waiting if prompt.attempt_id == attempt_id]:
            self.waiting.remove(prompt)
            self.control.say(AttemptFailed(attempt_id, "cancelled"))

    def _fits(self, prompt: SubmitPrompt) -> bool:
        return self.segments.can_allocate(self.engine.layout.blocks_for(len(prompt.tokens)))

    def _prefill(self, prompt: SubmitPrompt) -> None:
        """Compute a prompt, and send its KV unless the first output token is the last one."""
        start_s = self.run.now_s()
        table = self.segments.allocate(self.engine.layout.blocks_for(len(prompt.tokens)))
        layered = self._begin_layered(prompt, table, start_s)
        importance = Importance(self.config.importance_window) if self.config.importance_window else None
        observer = layered.observer if layered else importance
        first = self.engine.begin(prompt.tokens, table, observer, prompt.generation.sampling)
        end_s = self.run.now_s()
        if prompt.generation.ends([first.token]):
            if layered:
                layered.drop()
            else:
                self.segments.free(table)
            self.control.say(Prefilled(prompt.attempt_id, start_s, end_s, first.token, first.margin, None, first.logprobs))
        elif layered:
            layered.finish(first.token)
            self._report_prefilled(prompt, start_s, end_s, first, layered.transfer, end_s)
        else:
            self._send(prompt, table, importance, start_s, end_s, first)

    def _send(
        self, prompt: SubmitPrompt, table: list[int], importance: Importance | None, start_s: float, end_s: float, first: Choice
    ) -> None:
        """Decide, encode and submit the transfer of a prompt that was computed from start_s to end_s."""
        peer, tokens = self.run.peers.get(prompt.destination), len(prompt.tokens)
        if peer is None:
            self.segments.free(table)
            self.control.say(AttemptFailed(prompt.attempt_id, f"decode worker {prompt.destination} has left"))
            return
        transfer = OutboundTransfer.decided(peer, end_s, self.run.view(peer, tokens, prompt.deadline_s, end_s))
        decision = transfer.decision
        source = self._source(table, tokens, decision, importance)
        encoded_s = self.run.now_s()
        transfer.encode_s = encoded_s - end_s
        if isinstance(source, Stream):
            transfer.encoded(source)
        self._report_prefilled(prompt, start_s, end_s, first, transfer, encoded_s)
        expected_bytes = int(source.ends[transfer.next_cut(time.monotonic(), 0, 0)])
        more = {**prompt.generation.fields(), "expected_bytes": expected_bytes}
        ends = tuple(int(end) for end in source.ends)
        offer = Offer(prompt.attempt_id, decision.mode, tokens, ends, first_token=first.token, more=more)
        outgoing = Outgoing(prompt.attempt_id, offer, source, next_cut=transfer.next_cut)
        if decision.mode == "stream" and decision.refine_to_cut > 0:
            outgoing.next_refinement_cut = transfer.next_refinement_cut
        self._submit(outgoing, transfer, table, expected_bytes)
        if decision.mode == "stream" and decision.depth_bits == 8:
            self._report_curves(transfer.view, tokens, decision.coder)

    def _begin_layered(self, prompt: SubmitPrompt, table: list[int], start_s: float) -> LayeredTransfer | None:
        """A transfer that begins during prefill; None if the transfer cannot be sent in groups of layers."""
        peer, tokens = self.run.peers.get(prompt.destination), len(prompt.tokens)
        if peer is None or len(self.groups) < 2 or prompt.generation.osl < 2:
            return None
        expected = replace(self.run.view(peer, tokens, prompt.deadline_s, start_s), hidden_s=self.run.prefill_s(tokens))
        transfer = OutboundTransfer.decided(peer, start_s, expected)
        if transfer.decision.mode == "lossless":
            return None
        generation, window = prompt.generation.fields(), self.config.importance_window
        layered = LayeredTransfer(prompt.attempt_id, tokens, generation, transfer, self.groups, self.engine.pool, table, window)
        self._submit(layered.outgoing, transfer, table, layered.expected_bytes)
        return layered

    def _source(self, table: list[int], tokens: int, decision: Decision, importance: Importance | None) -> ByteSource:
        """What the sender reads: the encoded KV, or the pool itself."""
        pool, depth_bits = self.engine.pool, decision.depth_bits
        if decision.mode == "lossless":
            return PiecesSource([lossless_stream.encode(pool, table, tokens)])
        if decision.mode == "raw":
            return raw_source(pool, table, tokens, self.config.transport)
        weights = observed = None
        if importance and decision.coder == "klt":
            observed = importance.tokens(pool, table, tokens)
        elif importance:
            weights = importance.weights(pool, table, self.codec.cells(tokens, depth_bits), self.codec.calibration)
        return self.codec.encode(pool, table, tokens, depth_bits, decision.order, weights, decision.coder, observed)

    def _submit(self, outgoing: Outgoing, transfer: OutboundTransfer, table: list[int], expected_bytes: float) -> None:
        self.run.nic.enter(self.run.now_s(), outgoing.transfer_id, expected_bytes)
        outgoing.on_sent, outgoing.on_ack = transfer.on_sent, transfer.peer.on_ack
        self.sending[outgoing.transfer_id] = outgoing
        future = transfer.peer.sender.submit(outgoing)
        future.add_done_callback(lambda future: self._ended(outgoing.transfer_id, table, transfer, future))

    def _ended(self, attempt_id: int, table: list[int], transfer: OutboundTransfer, future: Future[Sent]) -> None:
        """Handle the end of a transfer, acknowledged or not. Called by the sender's thread."""
        self.control.inbox.put(TransferEnded(attempt_id, table))
        self.run.nic.leave(attempt_id)
        sent, origin_s = future.result(), self.run.origin_s
        if transfer.dropped:
            return
        if sent.error:
            broken = None
            if not math.isnan(sent.granted_s):
                granted_s, pacing = sent.granted_s - origin_s, transfer.peer.pacing
                broken = BrokenTransfer(transfer.decision.mode, sent.wire_bytes, granted_s, self.run.now_s(), pacing)
            self.control.say(AttemptFailed(attempt_id, f"transfer: {sent.error}", broken))
            return
        distortion = transfer.delivered(sent)
        self.control.say(
            TransferSent(
                attempt_id,
                granted_s=sent.granted_s - origin_s,
                last_byte_s=sent.last_byte_s - origin_s,
                acked_s=sent.acked_s - origin_s,
                wire_busy_s=transfer.wire_busy_s,
                wire_bytes=sent.wire_bytes,
                calls=sent.calls,
                cut=min(transfer.source.cuts) if transfer.source else sent.cut,
                retries=sent.retries,
                resumes=sent.resumes,
                distortion=distortion,
                refining=sent.refining,
            )
        )

    def _report_prefilled(
        self, prompt: SubmitPrompt, start_s: float, end_s: float, first: Choice, transfer: OutboundTransfer, encoded_s: float
    ) -> None:
        decision = transfer.decision
        streamed = decision.mode == "stream"
        plan = PlannedTransfer(
            encode_end_s=encoded_s,
            encode_busy_s=transfer.encode_s,
            mode=decision.mode,
            order=decision.order if streamed else "",
            depth_bits=decision.depth_bits if streamed else 0,
            price=transfer.expected.price,
            estimate_bytes_per_s=transfer.estimate_bytes_per_s,
            pacing=transfer.peer.pacing,
            codec=self.codec.describe(),
            coder=decision.coder if streamed else "",
        )
        self.control.say(Prefilled(prompt.attempt_id, start_s, end_s, first.token, first.margin, plan, first.logprobs))

    def _report_curves(self, view: TransferView, tokens: int, coder: CoderName) -> None:
        self.control.say(CodedCurves(tokens, coder, view.raw_bytes, view.slope, view.uniform))
