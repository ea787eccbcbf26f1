"""The decode side of a worker: KV that is awaited, arrives, is expanded, and is written into vLLM's blocks.

Network threads write into buffers of their own. One thread expands a complete transfer and writes it into the blocks, which belong to a
request that is not computed yet. Refinement is expanded by the same thread, and written by the engine's thread between two steps. Each load
is reported once: as loaded, or as failed together with its blocks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

import torch

from abkt.codec.codec import Codec
from abkt.codec.lossless import stream as lossless_stream
from abkt.connect.vllm.ask import Ask, new_number
from abkt.connect.vllm.layout import CODEC_TOKENS, PagedKV
from abkt.connect.vllm.links import Links
from abkt.connect.vllm.metadata import Load
from abkt.connect.vllm.params import RemoteKV
from abkt.connect.vllm.settings import Settings
from abkt.connect.vllm.stats import Counters
from abkt.connect.vllm.trace import Trace
from abkt.transfer.pieces import BufferSink, ByteSink
from abkt.transfer.protocol.messages import Offer
from abkt.transfer.receive.received import Received

TICK_S = 0.25
OVERHEAD_BYTES = 16 << 20  # a stream may be larger than raw KV by a third and this much: header, checksums, edges

log = logging.getLogger(f"vllm.{__name__}")

State = Literal["asked", "arriving", "arrived", "loaded", "over"]


@dataclass(slots=True, eq=False)
class Loading:
    """One load, from the ask until nothing more can come.

    asked      the ask was sent, no offer has come
    arriving   memory is reserved; bytes come
    arrived    the promised cut is complete; it is or will be expanded
    loaded     the KV is in the blocks; refinement may come
    over       reported, and no refinement is wanted

    received: the transfer. written_cut: the cut that is in the blocks. queued_cut: the cut that is or will be expanded. finer: (cut, KV)
    that is ready to be written between two steps. ended: the request has ended.
    """

    request_id: str
    load: Load
    number: int
    started_s: float
    address: str
    state: State = "asked"
    received: Received | None = None
    written_cut: int = -1
    queued_cut: int = -1
    finer: tuple[int, torch.Tensor] | None = None
    ended: bool = False

    @property
    def tokens(self) -> int:
        return self.load.tokens - self.load.first_token


class Inbox:
    """KV that this worker awaits. `start`, `end`, `refine`, `poll` and `close` are called by the engine's thread, the rest by any.

    asks: the links to prefill servers. rank: TP rank. address: where this worker listens.
    """

    def __init__(
        self, paged: PagedKV, codec: Codec, settings: Settings, asks: Links, counters: Counters, trace: Trace, rank: int = 0
    ) -> None:
        self._paged, self._codec, self._settings, self._asks, self._counters = paged, codec, settings, asks, counters
        self._trace, self._rank = trace, rank
        self.address = ""
        self._condition = threading.Condition()
        self._loadings: dict[int, Loading] = {}
        self._jobs: deque[Loading] = deque()
        self._finished: set[str] = set()
        self._written_s: list[float] = []  # when loads that are not reported yet were written
        self._bad_blocks: set[int] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="abkt inbox", daemon=True)
        self._thread.start()

    # Called by the engine's thread.

    def start(self, request_id: str, load: Load) -> None:
        """Ask for a request's KV."""
        number = new_number()
        loading = Loading(request_id, load, number, time.monotonic(), load.remote.addresses[self._rank])
        with self._condition:
            self._loadings[number] = loading
        ask = Ask("fetch", load.remote.request_id, number, self.address, load.first_token, load.tokens, load.remote.bitrate)
        try:
            future = self._asks.get(loading.address).sender.submit(ask.outgoing())
        except ValueError as error:
            self._fail(loading, str(error))
            return
        future.add_done_callback(lambda done: self._fail(loading, done.result().error) if done.result().error else None)

    def end(self, request_id: str) -> None:
        """A request has ended, or lost its blocks: its load is given up and reported, and no refinement is wanted."""
        with self._condition:
            for loading in [each for each in self._loadings.values() if each.request_id == request_id]:
                waits, loading.finer, loading.ended = loading.state in ("asked", "arriving"), None, True
                if loading.state == "arrived":
                    continue  # the thread writes into the blocks now or soon; it reports when it has
                if loading.received and not waits:
                    loading.received.decline()
                self._over(loading)
                if waits:
                    self._finished.add(request_id)
                    self._tell("cancel", loading.load.remote)

    def release(self, remote: RemoteKV) -> None:
        """Tell a prefill server that nobody will fetch this KV."""
        self._tell("release", remote)

    def refine(self, ended: set[str]) -> None:
        """Write finer values that are ready into the blocks of requests that still run. The last token's own KV, computed here, stays."""
        with self._condition:
            ready = [(each, each.finer) for each in self._loadings.values() if each.finer and each.request_id not in ended]
        for loading, finer in ready:
            assert finer is not None
            cut, data = finer
            if loading.tokens > 1:
                self._paged.scatter(data, loading.load.block_ids, loading.tokens - 1)
            with self._condition:
                loading.finer, loading.written_cut = None, cut
                if loading.received and not loading.received.refining and loading.received.cut <= cut:
                    self._over(loading)
                elif loading.received and loading.received.cut > loading.queued_cut:
                    self._queue(loading)
            self._counters.add(refined_cuts=1)

    def poll(self, wait_s: float = 0.0) -> tuple[set[str], set[int]]:
        """(requests whose load has ended, blocks whose load has failed) since the last call. Waits up to wait_s for one."""
        now_s = time.monotonic()
        with self._condition:
            loadings = list(self._loadings.values())
        for loading in loadings:
            if loading.state == "asked" and now_s - loading.started_s >= self._settings.timeout_s:
                self._fail(loading, f"no KV came from {loading.address} within {self._settings.timeout_s:g} s")
        with self._condition:
            if wait_s > 0 and not self._finished and any(each.state in ("asked", "arriving", "arrived") for each in loadings):
                self._condition.wait(wait_s)
            finished, self._finished = self._finished, set()
            bad, self._bad_blocks = self._bad_blocks, set()
            written, self._written_s = self._written_s, []
        for written_s in written:
            self._counters.add(report_s=time.monotonic() - written_s)
        return finished, bad

    def close(self) -> None:
        """End the thread. The receiver has to be closed before."""
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        self._thread.join()
        self._loadings.clear()

    # Called by the receiver's threads.

    def accept(self, offer: Offer) -> ByteSink:
        """Memory for an offer of KV. Raises ValueError, one line, if it is not awaited, or does not fit."""
        with self._condition:
            loading = self._loadings.get(offer.request_id)
            if loading is None or loading.state != "asked":
                raise ValueError(f"transfer {offer.request_id} is not awaited here; its request may have ended")
            self._check(offer, loading)
            loading.state = "arriving"
        return BufferSink(offer.size)

    def commit(self, received: Received) -> None:
        with self._condition:
            loading = self._loadings.get(received.offer.request_id)
            if loading is None or loading.state != "arriving":
                received.decline()
                return
            loading.received, loading.state = received, "arrived"
            if received.refinable and not loading.load.refinable:
                received.decline()
            self._queue(loading)

    def refined(self, received: Received) -> None:
        """Better values have come, or no more will."""
        with self._condition:
            loading = self._loadings.get(received.offer.request_id)
            if loading is None or loading.state != "loaded":
                return
            if received.cut > max(loading.written_cut, loading.queued_cut):
                if loading.finer is None:
                    self._queue(loading)
            elif not received.refining and loading.finer is None and received.cut <= loading.written_cut:
                self._over(loading)

    def abort(self, received: Received, reason: str) -> None:
        with self._condition:
            loading = self._loadings.get(received.offer.request_id)
        if loading is not None:
            self._fail(loading, reason)

    # The inbox's own.

    def _check(self, offer: Offer, loading: Loading) -> None:
        """Raises ValueError, one line, unless the offer is what was asked for."""
        blocks = -(-loading.tokens // CODEC_TOKENS)
        raw_bytes = blocks * CODEC_TOKENS * self._paged.spec.kv_bytes_per_token
        fits = offer.size == raw_bytes if offer.mode == "raw" else offer.size <= raw_bytes * 4 // 3 + OVERHEAD_BYTES
        if offer.tokens != loading.tokens or not fits:
            asked = f"{loading.tokens} tokens of {raw_bytes} raw bytes"
            raise ValueError(f"{offer.mode} KV of {offer.tokens} tokens in {offer.size} bytes was offered; {asked} were asked for")

    def _fail(self, loading: Loading, reason: str) -> None:
        """Report a load as failed, unless it has already been reported or its KV is complete."""
        with self._condition:
            if loading.state not in ("asked", "arriving"):
                return
            self._over(loading)
            self._finished.add(loading.request_id)
            self._bad_blocks.update(loading.load.block_ids)
            self._condition.notify_all()
        self._counters.add(failed_loads=1)
        log.warning("request %s: its KV could not be loaded: %s", loading.request_id, reason)

    def _over(self, loading: Loading) -> None:
        """Forget a load. Called under the lock."""
        loading.state, loading.finer = "over", None
        self._loadings.pop(loading.number, None)

    def _queue(self, loading: Loading) -> None:
        """Expand what has come. Called under the lock."""
        assert loading.received is not None
        loading.queued_cut = loading.received.cut
        self._jobs.append(loading)
        self._condition.notify_all()

    def _tell(self, what: Literal["cancel", "release"], remote: RemoteKV) -> None:
        """Send an ask whose answer does not matter: if it is lost, the lease ends."""
        try:
            self._asks.get(remote.addresses[self._rank]).sender.submit(Ask(what, remote.request_id).outgoing())
        except (ValueError, IndexError) as error:
            log.warning("request %s cannot be released: %s", remote.request_id, error)

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._jobs and not self._closing:
                    self._condition.wait(TICK_S)
                if self._closing:
                    return
                loading = self._jobs.popleft()
                received, cut, first = loading.received, loading.queued_cut, loading.state == "arrived"
                if loading.state == "over":
                    continue
            assert received is not None
            try:
                data, distortion = self._expanded(received, cut, loading.tokens)
                if first:
                    self._paged.scatter(data, loading.load.block_ids, loading.tokens)
            except Exception as error:
                log.exception("request %s: its KV could not be expanded", loading.request_id)
                self._broken(loading, received, first, str(error))
                continue
            self._expanded_to(loading, received, cut, data, distortion, first)

    def _expanded_to(self, loading: Loading, received: Received, cut: int, data: torch.Tensor, distortion: float, first: bool) -> None:
        now_s = time.monotonic()
        with self._condition:
            if loading.state == "over":
                return
            if not first:
                loading.finer = cut, data
                return
            loading.state, loading.written_cut = "loaded", cut
            self._finished.add(loading.request_id)
            self._written_s.append(now_s)
            if loading.ended or not received.refinable or received.declined:
                received.decline()
                self._over(loading)
            elif received.cut > cut:
                self._queue(loading)
            self._condition.notify_all()
        self._counters.add(
            received_bytes=received.offer.ends[cut],
            received_raw_bytes=loading.tokens * self._paged.spec.kv_bytes_per_token,
            received_cut=cut,
            received_distortion=distortion,
            exposed_s=now_s - loading.started_s,
            offer_s=received.offered_s - loading.started_s,
            arrive_s=received.committed_s - received.offered_s,
            write_s=now_s - received.committed_s,
            received_peer=loading.address,
        )
        self._trace.write(
            "loaded", request=loading.request_id, remote=loading.load.remote.request_id, mode=received.offer.mode,
            bytes=received.offer.ends[cut], raw_bytes=loading.tokens * self._paged.spec.kv_bytes_per_token, cut=cut, distortion=distortion,
            asked_s=loading.started_s, offered_s=received.offered_s, committed_s=received.committed_s, written_s=now_s,
        )  # fmt: skip

    def _broken(self, loading: Loading, received: Received, first: bool, reason: str) -> None:
        received.decline()
        with self._condition:
            if not first:  # the values in the blocks are good
                if loading.state != "over":
                    self._over(loading)
                return
            loading.state = "arriving"
        self._fail(loading, reason)

    def _expanded(self, received: Received, cut: int, tokens: int) -> tuple[torch.Tensor, float]:
        """The KV up to a cut, as a pool's data, and its distortion. Raw KV is what has come, without a copy."""
        offer, sink = received.offer, received.sink
        assert isinstance(sink, BufferSink)
        data = memoryview(sink.data)[: offer.ends[cut]]
        if offer.mode == "raw":
            layout, device = self._paged.layout(tokens), self._paged.layers[0].device
            return torch.frombuffer(data, dtype=self._paged.layers[0].dtype).view(layout.shape).to(device), 0.0
        pool = self._paged.pool(tokens)
        table, distortion = range(len(pool.data)), 0.0
        if offer.mode == "lossless":
            lossless_stream.expand(data, pool, table)
        else:
            distortion = self._codec.expand(data, pool, table).distortion
        return pool.data, distortion
