"""The decode worker: takes KV in, expands it at iteration boundaries, decodes in continuous batches.

`python -m abkt.serve.decode CONFIG`, with a WorkerConfig as JSON; its frontend starts it.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass

from abkt.codec import exact_stream
from abkt.serve.attention import Row
from abkt.serve.control import Control, Message, WorkerConfig, pin
from abkt.serve.equipment import equip
from abkt.serve.wire import fingerprint, raw_pieces
from abkt.transfer.key import find_key
from abkt.transfer.messages import Hello, Offer
from abkt.transfer.pieces import BufferSink, ByteSink, PiecesSink
from abkt.transfer.received import Received
from abkt.transfer.receiver import Receiver
from abkt.transfer.tcp import Tcp

ITERATIONS_KEPT = 20_000


@dataclass(slots=True)
class Running:
    """A request on this side: its blocks, what it produced, and when its stages were (CLOCK_MONOTONIC until they are told)."""

    request_id: int
    osl: int
    table: list[int]
    row: Row
    tokens: list[int]
    received_s: float
    expand_busy_s: float = 0.0
    expand_end_s: float = 0.0
    decode_token_s: float = 0.0
    decode_busy_s: float = 0.0


class DecodeWorker:
    """The receiver's threads reserve memory and put what has arrived into the control's inbox; only the main loop computes."""

    def __init__(self, config: WorkerConfig, control: Control) -> None:
        self.config = config
        self.control = control
        equipment = equip(config)
        self.engine, self.codec, self.segments = equipment.engine, equipment.codec, equipment.segments
        self._memory = threading.Lock()
        self._tables: dict[int, list[int]] = {}  # by transfer id, from the offer to the last token
        self.arrived: deque[Received] = deque()
        self.batch: list[Running] = []
        self.iterations: list[tuple[int, int, float]] = []
        self.origin_s = 0.0
        hello = Hello(config.name, fingerprint(self.engine.layout))
        key = find_key(config.key_file, config.encrypt)
        self.receiver = Receiver(Tcp(), f"{config.host}:0", hello, self._accept, self._committed, self._aborted, key=key)

    def serve(self) -> None:
        while True:
            while not self.control.inbox.empty() or not (self.batch or self.arrived):
                if not self._handle(self.control.inbox.get()):
                    self.receiver.close()
                    return
            while self.arrived and len(self.batch) < self.config.max_batch:
                self._join(self.arrived.popleft())
            self._iterate()

    def _handle(self, message: Message) -> bool:
        match message["op"]:
            case "run":
                self.origin_s = message["origin_s"]
                self.iterations.clear()
            case "arrived":
                self.arrived.append(message["received"])
            case "report":
                self.control.say("iterations", iterations=self.iterations)
        return message["op"] != "stop"

    def _join(self, received: Received) -> None:
        """Expand what has arrived and put the request into the batch."""
        offer, table = received.offer, self._tables[received.transfer_id]
        start_s = time.monotonic()
        if offer.mode != "raw":
            assert isinstance(received.sink, BufferSink)
            data = memoryview(received.sink.data)[: offer.ends[received.cut]]
            expand = exact_stream.expand if offer.mode == "exact" else self.codec.expand
            expand(data, self.engine.pool, table[: self.engine.layout.blocks_for(offer.tokens)])
        running = Running(
            offer.request_id, int(offer.more["osl"]), table, Row(table, offer.tokens), [offer.first_token], received.committed_s
        )
        running.expand_end_s = time.monotonic()
        running.expand_busy_s = running.expand_end_s - start_s
        self.batch.append(running)

    def _iterate(self) -> None:
        """One token for each request of the batch."""
        start_s = time.monotonic()
        context = sum(running.row.tokens for running in self.batch)
        tokens = self.engine.decode([running.row for running in self.batch], [running.tokens[-1] for running in self.batch])
        end_s = time.monotonic()
        if len(self.iterations) < ITERATIONS_KEPT:
            self.iterations.append((len(self.batch), context, end_s - start_s))
        for running, token in zip(self.batch, tokens, strict=True):
            running.decode_token_s = running.decode_token_s or end_s
            running.tokens.append(token)
            running.decode_busy_s += end_s - start_s
        for running in [r for r in self.batch if len(r.tokens) >= r.osl]:
            self.batch.remove(running)
            self._finish(running, end_s)

    def _finish(self, running: Running, finish_s: float) -> None:
        self._release(running.request_id)
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
        )

    def _accept(self, peer: str, offer: Offer) -> ByteSink | None:
        """Reserve blocks for the prompt and all that will be produced; None while there are too few. Called by receiver threads."""
        layout = self.engine.layout
        osl = offer.more.get("osl")
        if not isinstance(osl, int) or osl < 2 or layout.blocks_for(offer.tokens + osl) > layout.blocks:
            raise ValueError(
                f"request {offer.request_id} of {offer.tokens} tokens and osl {osl} does not fit a pool of {layout.blocks} blocks"
            )
        if offer.mode == "raw" and offer.size != layout.blocks_for(offer.tokens) * layout.block_bytes:
            raise ValueError(f"request {offer.request_id}: raw KV of {offer.tokens} tokens is not {offer.size} bytes here")
        with self._memory:
            blocks = layout.blocks_for(offer.tokens + osl)
            if offer.request_id in self._tables:
                raise ValueError(f"request {offer.request_id} is here already")
            if not self.segments.can_allocate(blocks):
                return None
            table = self._tables[offer.request_id] = self.segments.allocate(blocks)
        if offer.mode == "raw":
            return PiecesSink(raw_pieces(self.engine.pool, table[: layout.blocks_for(offer.tokens)]))
        return BufferSink(offer.size)

    def _committed(self, received: Received) -> None:
        self.control.inbox.put({"op": "arrived", "received": received})

    def _aborted(self, received: Received, reason: str) -> None:
        self._release(received.offer.request_id)

    def _release(self, request_id: int) -> None:
        with self._memory:
            self.segments.free(self._tables.pop(request_id))
        self.receiver.memory_freed()


def main() -> None:
    config = WorkerConfig(**json.loads(sys.argv[1]))
    pin(config)
    control = Control()
    worker = DecodeWorker(config, control)
    control.say("ready", address=worker.receiver.address)
    worker.serve()


if __name__ == "__main__":
    main()
