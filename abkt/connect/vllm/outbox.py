"""The prefill side of a worker: KV of finished requests, copied out of vLLM's blocks, encoded, and sent to who asks for it.

One thread does the work, off the engine's thread: first it copies, so that vLLM gets its blocks back; then it serves asks; then it encodes
what nobody has asked for yet. A request is reported as sent once, when its blocks were copied or given up.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict

import torch

from abkt.codec.codec import Codec
from abkt.codec.lossless import stream as lossless_stream
from abkt.codec.stream import Stream
from abkt.connect.vllm.ask import Ask
from abkt.connect.vllm.layout import CODEC_TOKENS, PagedKV
from abkt.connect.vllm.links import Links, SteeredTransfer
from abkt.connect.vllm.metadata import Send
from abkt.connect.vllm.settings import Settings
from abkt.connect.vllm.shelf import Kept, Shelf
from abkt.connect.vllm.stats import Counters
from abkt.connect.vllm.trace import Trace
from abkt.kv.pool import Pool
from abkt.policy.view import Curve, Decision, TransferView
from abkt.transfer.pieces import ByteSource, PiecesSource
from abkt.transfer.protocol.messages import Offer
from abkt.transfer.send.outgoing import Outgoing, RefinementResult, Sent

SWEEP_S = 0.5  # time between two looks for expired leases
NO_CURVE = Curve((0.0,), (0.0,), (0.0,))

log = logging.getLogger(f"vllm.{__name__}")


class Outbox:
    """Prefilled KV that waits for decode servers. `add`, `take_sent` and `close` are called by the engine's thread, the rest by any.

    changed: called when a request has become known, so that asks for it are looked at again.
    """

    def __init__(
        self,
        paged: PagedKV,
        codec: Codec,
        settings: Settings,
        links: Links,
        counters: Counters,
        trace: Trace,
        weights: Callable[[int], torch.Tensor | None] = lambda tokens: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._paged, self._codec, self._settings, self._links, self._counters = paged, codec, settings, links, counters
        self._trace, self._weights, self.changed = trace, weights, changed
        self._condition = threading.Condition()
        self._shelf = Shelf(settings.lease_s, settings.memory_bytes)
        self._copies: deque[Kept] = deque()
        self._asks: deque[Ask] = deque()
        self._encodes: deque[Kept] = deque()
        self._sent: dict[str, float] = {}  # request whose blocks are free -> when they were given to us
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="abkt outbox", daemon=True)
        self._thread.start()

    def add(self, request_id: str, send: Send) -> None:
        """Keep a finished request's KV. Its blocks must not change until take_sent has named it."""
        with self._condition:
            self._copies.append(self._shelf.put(request_id, send, time.monotonic()))
            self._condition.notify_all()
        self.changed()

    def take_sent(self, wait_s: float = 0.0) -> set[str]:
        """Requests whose blocks are free since the last call. Waits up to wait_s for one whose blocks are still being read."""
        with self._condition:
            if wait_s > 0 and self._copies and not self._sent:
                self._condition.wait(wait_s)
            sent, self._sent = self._sent, {}
        for added_s in sent.values():
            self._counters.add(held_s=time.monotonic() - added_s)
        return set(sent)

    def known(self, ask: Ask) -> bool:
        """Whether the request of an ask is here; False: it may come soon. Raises ValueError, one line, if it is not, and will not be."""
        with self._condition:
            return self._shelf.known(ask, time.monotonic())

    def take(self, ask: Ask) -> None:
        """Do what an accepted ask says, soon."""
        with self._condition:
            if ask.ask == "fetch":
                self._asks.append(ask)
            elif kept := self._shelf.get(ask.request_id):
                kept.dropped = True
                for outgoing in kept.sending.values():
                    outgoing.cancel.set()
            self._condition.notify_all()

    def close(self) -> None:
        """End the thread. The links have to be closed before, since transfers read what is kept here."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()
        self._shelf.clear()

    def _run(self) -> None:
        while True:
            with self._condition:
                self._sweep(time.monotonic())
                while not (job := self._next()) and not self._closing:
                    self._condition.wait(SWEEP_S)
                    self._sweep(time.monotonic())
                if self._closing:
                    return
            assert job is not None
            try:
                job()
            except Exception:
                log.exception("the connector failed on the prefill side; the request's KV is dropped")
            del job

    def _next(self) -> Callable[[], None] | None:
        """The most urgent job. Called under the lock."""
        if self._copies and self._room_for(self._copies[0]):
            kept = self._copies[0]
            return lambda: self._copy(kept)
        waiting = {kept.request_id for kept in self._copies}
        if ask := next((ask for ask in self._asks if ask.request_id not in waiting), None):
            self._asks.remove(ask)
            return lambda: self._serve(ask)
        while self._encodes:
            kept = self._encodes.popleft()
            if kept.stream is None and kept.pool is not None:
                return lambda: self._encode(kept, self._settings.depth_bits)
        return None

    def _room_for(self, kept: Kept) -> bool:
        return self._shelf.has_room(kept.send.tokens * self._paged.spec.kv_bytes_per_token)

    def _copy(self, kept: Kept) -> None:
        """Copy a request's KV out of vLLM's blocks, and free them."""
        device = self._paged.layers[0].device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        try:
            pool = self._paged.gather(kept.send.block_ids, kept.send.tokens)
        except (ValueError, RuntimeError) as error:  # such as memory that is not there
            log.warning("request %s: its KV cannot be kept: %s", kept.request_id, error)
            pool, kept.dropped = None, True
        with self._condition:
            self._copies.remove(kept)
            self._sent[kept.request_id] = kept.added_s
            if pool is not None:
                kept.pool = pool
                self._shelf.hold(kept, pool.data.nbytes)
                if self._settings.depth_bits:
                    self._encodes.append(kept)
            self._condition.notify_all()
        self._trace.write("kept", request=kept.request_id, tokens=kept.send.tokens, added_s=kept.added_s, copied_s=time.monotonic())

    def _encode(self, kept: Kept, depth_bits: int) -> None:
        pool = kept.pool
        assert pool is not None
        start_s, before = time.monotonic(), kept.stream.ends[-1] if kept.stream else 0
        kept.stream = self._coded(pool, 0, kept.send.tokens, depth_bits)
        kept.encode_s = time.monotonic() - start_s
        self._counters.add(encode_s=kept.encode_s)
        with self._condition:
            self._shelf.hold(kept, kept.stream.ends[-1] - before)
        if self._trace:
            self._trace.write(
                "coded", request=kept.request_id, depth=depth_bits, raw_bytes=kept.send.tokens * self._paged.spec.kv_bytes_per_token,
                begin_s=start_s, end_s=start_s + kept.encode_s, slope=asdict(kept.stream.slope), uniform=asdict(kept.stream.uniform),
            )  # fmt: skip

    def _coded(self, pool: Pool, first_token: int, tokens: int, depth_bits: int) -> Stream:
        """The KV from first_token on, in slope order."""
        table = range(first_token // CODEC_TOKENS, len(pool.data))
        left = tokens - first_token
        return self._codec.encode(pool, table, left, depth_bits, "slope", self._weights(left), self._settings.coder)  # type: ignore[arg-type]

    def _serve(self, ask: Ask) -> None:
        """Decide, and submit the transfer of what was asked for."""
        with self._condition:
            kept = self._shelf.get(ask.request_id)
            if kept is None or kept.dropped or kept.pool is None:
                return  # the decode server's timeout ends its wait
            kept.sending[ask.number] = None  # type: ignore[assignment]  # so that its lease does not end meanwhile
        try:
            self._submit(kept, ask)
        except (ValueError, RuntimeError) as error:
            log.warning("request %s cannot be sent to %s: %s", ask.request_id, ask.address, error)
            self._counters.add(failed_sends=1)
            with self._condition:
                kept.sending.pop(ask.number, None)

    def _submit(self, kept: Kept, ask: Ask) -> None:
        pool, left = kept.pool, kept.send.tokens - ask.first_token
        assert pool is not None
        link, now_s = self._links.get(ask.address), time.monotonic()
        raw_bytes = pool.layout.block_bytes * (len(pool.data) - ask.first_token // CODEC_TOKENS)
        settings, stream = self._settings.with_bitrate(ask.bitrate), None
        with link.lock:
            policy = link.policies.setdefault(ask.bitrate, settings.policy())
        if depth := settings.depth_bits:
            if ask.first_token == 0:
                if kept.stream is None or kept.stream.depth_bits < depth:
                    self._encode(kept, depth)
                stream = kept.stream
            else:
                stream = self._coded(pool, ask.first_token, kept.send.tokens, depth)
        view = TransferView(
            raw_bytes,
            now_s + settings.deadline_s,
            slope=stream.slope if stream else NO_CURVE,
            uniform=stream.uniform if stream else NO_CURVE,
            expand_s=kept.encode_s * left / kept.send.tokens,
            lossless_bytes=raw_bytes if settings.bitrate == "lossless" else 0.0,
        )
        with link.lock:
            decision = policy.decide(now_s, view)
        if decision.mode == "stream" and stream is None:
            raise ValueError("the policy asks for a stream, but KV was not coded")
        if decision.mode == "stream" and stream and stream.order != decision.order:
            stream = stream.reordered(self._weights(left), decision.order)
        source = self._source(pool, ask.first_token, left, decision, stream)
        ends = tuple(int(end) for end in source.ends)
        outgoing = Outgoing(ask.number, Offer(ask.number, decision.mode, left, ends), source)
        steered = SteeredTransfer(link, policy, view, decision)
        if decision.mode == "stream" and stream:
            steered.view.raw_s = math.inf
            steered.encoded(stream)
        steered.attach(outgoing)
        outgoing.on_refinement_end = lambda result: self._refined(kept, steered, result)
        with self._condition:
            if kept.dropped:
                outgoing.cancel.set()
            kept.sending[ask.number] = outgoing
        future = link.sender.submit(outgoing)
        future.add_done_callback(lambda future: self._ended(kept, steered, ask, future))

    def _source(self, pool: Pool, first_token: int, tokens: int, decision: Decision, stream: Stream | None) -> ByteSource:
        first = first_token // CODEC_TOKENS
        if decision.mode == "stream" and stream:
            return stream
        if decision.mode == "lossless":
            return PiecesSource([lossless_stream.encode(pool, range(first, len(pool.data)), tokens)])
        data = pool.data[first:]
        return PiecesSource([data.cpu().view(torch.uint8).reshape(-1).numpy().data])

    def _ended(self, kept: Kept, steered: SteeredTransfer, ask: Ask, future: Future[Sent]) -> None:
        """A transfer has been acknowledged, or has failed; a failed one may be asked for again. Called by the sender's thread."""
        sent = future.result()
        self._counters.add(retries=sent.retries, resumes=sent.resumes)
        if sent.error:
            if not kept.dropped:
                log.warning("request %s to %s: %s", ask.request_id, ask.address, sent.error)
                self._counters.add(failed_sends=1)
        else:
            steered.delivered(sent)
            self._counters.add(sent_bytes=sent.wire_bytes, sent_peer=ask.address)
        with self._condition:
            if not sent.refining:
                kept.sending.pop(ask.number, None)
            if not sent.error:
                if kept.pool is not None:
                    self._shelf.hold(kept, -kept.pool.data.nbytes)
                    kept.pool = None
                kept.dropped = True
            self._condition.notify_all()

    def _refined(self, kept: Kept, steered: SteeredTransfer, result: RefinementResult) -> None:
        steered.refined(result.cut)
        self._counters.add(refined_bytes=result.wire_bytes)
        self._trace.write("refined", request=kept.request_id, bytes=result.wire_bytes)
        with self._condition:
            kept.sending.pop(result.transfer_id, None)
            self._condition.notify_all()

    def _sweep(self, now_s: float) -> None:
        """Forget what is not needed, and what was not fetched in time. Called under the lock."""
        for kept in self._shelf.sweep(now_s):
            if kept in self._copies:
                self._copies.remove(kept)
                self._sent[kept.request_id] = kept.added_s
            if not kept.dropped:
                log.warning("request %s: nobody fetched its KV within %g s; it is dropped", kept.request_id, self._settings.lease_s)
                self._counters.add(expired=1)
