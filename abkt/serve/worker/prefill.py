"""A worker in the role of prefill: computes a prompt's KV, lets the policy decide, encodes, hands the bytes to the sender.

A request_id is the frontend's number of one try; a request that is tried again comes with another one.
"""

from __future__ import annotations

import math
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from abkt.capacity import Capacity
from abkt.codec.importance import Importance
from abkt.codec.lossless import stream as lossless_stream
from abkt.codec.stream import Stream
from abkt.policy.build import build
from abkt.policy.view import CoderName, Decision, TransferView
from abkt.profile.expect import expected_view, unmeasured_view
from abkt.profile.schema import Profile, parse
from abkt.serve.control import Control, Message, WorkerConfig
from abkt.serve.engine.sampling import Sampling
from abkt.serve.pacing import Pacing
from abkt.serve.worker.equipment import Equipment
from abkt.serve.worker.layered import Group, Layered, Watcher, footer_bytes, most_bytes, raw_group, spans
from abkt.serve.worker.nic import WorkerNic
from abkt.serve.worker.peer import DecodePeer, OutboundTransfer
from abkt.serve.worker.raw import fingerprint, raw_source
from abkt.transfer.pieces import ByteSource, Pieces, PiecesSource
from abkt.transfer.protocol.key import find_key
from abkt.transfer.protocol.messages import Hello, Offer
from abkt.transfer.send.outgoing import Outgoing, Sent
from abkt.transfer.send.sender import Sender


@dataclass(slots=True)
class Early:
    """A transfer that began with its prefill."""

    transfer: OutboundTransfer
    source: Layered
    watcher: Watcher
    outgoing: Outgoing


class PrefillWorker:
    """One prompt at a time, in the order they come; the source blocks stay until the decode side has acknowledged."""

    def __init__(self, config: WorkerConfig, control: Control, equipment: Equipment) -> None:
        self.config = config
        self.control = control
        self.key = find_key(config.key_file, config.encrypt)
        self.equipment = equipment
        self.engine, self.codec, self.segments = equipment.engine, equipment.codec, equipment.segments
        self.waiting: deque[Message] = deque()
        self.peers: dict[str, DecodePeer] = {}
        self.sending: dict[int, Outgoing] = {}  # until the sender is done with it
        self.bitrate: dict[str, Any] = {}
        self.profile: Profile | None = None
        self.pacing = Pacing("userspace", Capacity.constant(math.inf), 0.0, config.transport)
        self.nic = WorkerNic()
        layers = self.engine.layout.model.layers
        self.groups = [Group(self.codec, span) for span in spans(layers, min(config.layer_groups, layers))]
        self.origin_s = 0.0

    def serve(self) -> str:
        """Until there is another role to take, which is returned, or nothing more to do: empty."""
        while True:
            message = self.control.inbox.get()
            match message["op"]:
                case "prepare":
                    self.equipment.prepare(message["tokens"])
                    self.control.say("prepared")
                case "run":
                    self._begin(message)
                case "peer":
                    self._meet(message["name"], message["address"])
                case "unpeer":
                    self._leave(message["name"])
                case "submit":
                    self.waiting.append(message)
                case "cancel":
                    self._cancel(message["request_id"])
                case "withdraw":
                    self.control.say("withdrawn", request_ids=[request["request_id"] for request in self.waiting])
                    self.waiting.clear()
                case "refined":
                    for peer in self.peers.values():
                        peer.refined(message["request_id"], message["distortion_token_weighted"])
                case "release":
                    self._release(message["request_id"], message["table"])
                case "role" | "stop":
                    self._end()
                    return str(message.get("role", ""))
            while self.waiting and self.control.inbox.empty() and self._fits(self.waiting[0]):
                with self.equipment.turn:
                    self._prefill(self.waiting.popleft())

    def _cancel(self, request_id: int) -> None:
        """Nobody waits for it any more. It is said to have failed, unless it is done."""
        if outgoing := self.sending.get(request_id):
            outgoing.cancel.set()
        for request in [each for each in self.waiting if each["request_id"] == request_id]:
            self.waiting.remove(request)
            self.control.say("failed", request_id=request_id, reason="cancelled")

    def _release(self, request_id: int, table: list[int]) -> None:
        self.segments.free(table)
        self.sending.pop(request_id, None)

    def _source(self, table: list[int], tokens: int, decision: Decision, importance: Importance | None) -> ByteSource:
        if decision.mode == "stream":
            return self._encode(table, tokens, decision, importance)
        if decision.mode == "lossless":
            return PiecesSource([lossless_stream.encode(self.engine.pool, table, tokens)])
        return raw_source(self.engine.pool, table, self.config.transport)

    def _encode(self, table: list[int], tokens: int, decision: Decision, importance: Importance | None) -> Stream:
        pool, depth_bits = self.engine.pool, decision.depth_bits
        cells = self.codec.cells(tokens, depth_bits)
        weights = importance.weights(pool, table, cells, self.codec.calibration) if importance else None
        return self.codec.encode(pool, table, tokens, depth_bits, decision.order, weights, decision.coder)

    def _fits(self, request: Message) -> bool:
        return self.segments.can_allocate(self.engine.layout.blocks_for(len(request["tokens"])))

    def _prefill(self, request: Message) -> None:
        request_id, tokens = request["request_id"], request["tokens"]
        start_s = self._now_s()
        table = self.segments.allocate(self.engine.layout.blocks_for(len(tokens)))
        early = self._early(request, table, start_s) if len(self.groups) > 1 and request["more"]["osl"] > 1 else None
        importance = Importance(self.config.importance_window) if self.config.importance_window else None
        first = self.engine.begin(tokens, table, early.watcher if early else importance, Sampling.of(request["more"]))
        end_s = self._now_s()
        computed = {
            "request_id": request_id,
            "prefill_start_s": start_s,
            "prefill_end_s": end_s,
            "token": first.token,
            "margin": first.margin,
        }
        if request["more"]["osl"] < 2 or first.token == request["more"].get("stop", -1):
            if early:
                early.transfer.dropped = True
                early.outgoing.cancel.set()
            else:
                self.segments.free(table)
            self.control.say("prefilled", last=True, **computed)
            return
        peer = self.peers.get(request["destination"])
        if early:
            early.source.finish(first.token)
            self._tell_prefilled(early.transfer, encode_end_s=end_s, **computed)
            return
        if peer is None:
            self.segments.free(table)
            self.control.say("failed", request_id=request_id, reason=f"{request['destination']} has left")
            return
        transfer = OutboundTransfer.decided(peer, end_s, self._view(peer, len(tokens), request["deadline_s"], end_s))
        decision = transfer.decision
        source = self._source(table, len(tokens), decision, importance)
        encoded_s = self._now_s()
        transfer.encode_s = encoded_s - end_s
        if isinstance(source, Stream):
            transfer.encoded(source)
        self._tell_prefilled(transfer, encode_end_s=encoded_s, **computed)
        expected_bytes = int(source.ends[transfer.next_cut(time.monotonic(), 0, 0)])
        more = {**request["more"], "expected_bytes": expected_bytes}
        ends = tuple(int(end) for end in source.ends)
        offer = Offer(request_id, decision.mode, len(tokens), ends, first_token=first.token, more=more)
        outgoing = Outgoing(request_id, offer, source, next_cut=transfer.next_cut)
        if decision.mode == "stream" and decision.refine_to_cut > 0:
            outgoing.next_refinement_cut = transfer.next_behind
        self._submit(outgoing, transfer, table, expected_bytes)
        if decision.mode == "stream" and decision.depth_bits == 8:
            self._tell_coded(transfer.view, len(tokens), decision.coder)

    def _submit(self, outgoing: Outgoing, transfer: OutboundTransfer, table: list[int], expected_bytes: float) -> None:
        self.nic.enter(self._now_s(), outgoing.transfer_id, expected_bytes)
        outgoing.on_sent, outgoing.on_ack = transfer.on_sent, transfer.peer.on_ack
        self.sending[outgoing.transfer_id] = outgoing
        future = transfer.peer.sender.submit(outgoing)
        future.add_done_callback(lambda future: self._sent(outgoing.transfer_id, table, transfer, future))

    def _early(self, request: Message, table: list[int], start_s: float) -> Early | None:
        """A transfer that begins with its prefill, unless the policy wants one that cannot be had layer by layer."""
        peer, request_id, tokens = self.peers.get(request["destination"]), request["request_id"], len(request["tokens"])
        if peer is None:
            return None
        hidden_s = self.profile.fit("prefill").seconds(tokens=tokens) if self.profile else 0.0
        expected = replace(self._view(peer, tokens, request["deadline_s"], start_s), hidden_s=hidden_s)
        transfer = OutboundTransfer.decided(peer, start_s, expected)
        mode, layout, groups = transfer.decision.mode, self.engine.layout, len(self.groups)
        if mode == "lossless":
            return None
        if mode == "raw":
            source = Layered(groups, layout.blocks_for(tokens) * layout.block_bytes + footer_bytes(groups))
            expected_bytes = float(expected.raw_bytes)
        else:
            source = Layered(groups, most_bytes(layout, tokens, groups), partial(transfer.turn, groups))
            expected_bytes = expected.curve(transfer.decision.order).bytes[transfer.decision.cut]
        transfer.layered = source
        more = {**request["more"], "expected_bytes": expected_bytes, "layer_groups": groups}
        outgoing = Outgoing(request_id, Offer(request_id, mode, tokens, source.ends, more=more), source, available=source.available)
        watcher = Watcher(self.config.importance_window, lambda layer: self._layer_done(layer, early, table, tokens))
        early = Early(transfer, source, watcher, outgoing)
        self._submit(outgoing, transfer, table, expected_bytes)
        return early

    def _layer_done(self, layer: int, early: Early, table: list[int], tokens: int) -> None:
        """Called in the middle of prefill."""
        for group in self.groups:
            if layer == group.stop - 1:
                begun_s = time.monotonic()
                pool, decision = self.engine.pool, early.transfer.decision
                if decision.mode == "raw":
                    early.source.add(Pieces(raw_group(pool, table, (group.first, group.stop))))
                else:
                    early.source.add(group.encode(pool, table, tokens, decision, early.watcher))
                early.transfer.encode_s += time.monotonic() - begun_s

    def _tell_prefilled(self, transfer: OutboundTransfer, **computed: Any) -> None:
        decision, estimate = transfer.decision, transfer.estimate_bytes_per_s
        self.control.say(
            "prefilled",
            last=False,
            **computed,
            encode_busy_s=transfer.encode_s,
            mode=decision.mode,
            order=decision.order if decision.mode == "stream" else "",
            depth_bits=decision.depth_bits if decision.mode == "stream" else 0,
            price=transfer.expected.price,
            estimate_bytes_per_s=None if math.isnan(estimate) else estimate,
            pacing=transfer.peer.pacing,
            codec=self.codec.describe(),
        )

    def _sent(self, request_id: int, table: list[int], transfer: OutboundTransfer, future: Future[Sent]) -> None:
        """Called by the sender's thread at the transfer's end, good or bad."""
        self.control.inbox.put({"op": "release", "request_id": request_id, "table": table})
        self.nic.leave(request_id)
        sent = future.result()
        if transfer.dropped:
            return
        if sent.error:
            spent = {"mode": transfer.decision.mode, "wire_bytes": sent.wire_bytes, "granted_s": sent.granted_s - self.origin_s}
            begun = {} if math.isnan(sent.granted_s) else {**spent, "ended_s": self._now_s(), "pacing": transfer.peer.pacing}
            self.control.say("failed", request_id=request_id, reason=f"transfer: {sent.error}", **begun)
            return
        distortion = transfer.delivered(sent)
        self.control.say(
            "sent",
            request_id=request_id,
            granted_s=sent.granted_s - self.origin_s,
            last_byte_s=sent.last_byte_s - self.origin_s,
            acked_s=sent.acked_s - self.origin_s,
            wire_busy_s=transfer.wire_busy_s,
            wire_bytes=sent.wire_bytes,
            calls=sent.calls,
            cut=min(transfer.layered.cuts) if transfer.layered else sent.cut,
            retries=sent.retries,
            resumes=sent.resumes,
            distortion=distortion,
            refining=sent.refining,
        )

    def _view(self, peer: DecodePeer, tokens: int, deadline_s: float, now_s: float) -> TransferView:
        if self.profile:
            view = expected_view(self.profile, tokens, deadline_s)
        else:
            raw_bytes = tokens * self.engine.layout.model.kv_bytes_per_token
            view = unmeasured_view(raw_bytes, deadline_s)
        lossless_bytes = view.lossless_bytes if self.engine.pool.data.device.type == "cpu" else 0.0  # the message is made there alone
        return replace(view, price=peer.price_per_byte(now_s), lossless_bytes=lossless_bytes)

    def _tell_coded(self, view: TransferView, tokens: int, coder: CoderName) -> None:
        curves = {
            order: {"bytes": curve.bytes, "distortion": curve.distortion, "bits": curve.bits}
            for order, curve in (("slope", view.slope), ("uniform", view.uniform))
        }
        self.control.say("coded", tokens=tokens, coder=coder, raw_bytes=view.raw_bytes, **curves)

    def _begin(self, run: Message) -> None:
        """A run starts with fresh policies, a fresh link schedule and fresh connections."""
        self._end()
        self.origin_s = run["origin_s"]
        self.profile = parse(run["profile"]) if run["profile"] else None
        self.bitrate = run["bitrate"]
        network = run["network"]
        capacity = Capacity(tuple(network["starts_s"]), tuple(network["bytes_per_s"]), network["period_s"])
        self.pacing = Pacing(run["pacing"], capacity, self.origin_s, self.config.transport)
        self.nic.reset(max(capacity.bytes_per_s))
        for name, address in run["peers"].items():
            self._meet(name, address)

    def _meet(self, name: str, address: str) -> None:
        """A decode worker is there."""
        self._leave(name)
        hello = Hello(self.config.name, fingerprint(self.engine.layout))
        sender = Sender(self.pacing.transport, address, hello, self.pacing.link, key=self.key)
        self.peers[name] = DecodePeer(build(self.bitrate), sender, self.pacing.name, self.nic, self.origin_s)

    def _leave(self, name: str) -> None:
        """Transfers to it that are not done fail."""
        if peer := self.peers.pop(name, None):
            peer.sender.close()

    def _end(self) -> None:
        for name in list(self.peers):
            self._leave(name)
        self.pacing.close()

    def _now_s(self) -> float:
        return time.monotonic() - self.origin_s
