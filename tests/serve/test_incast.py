"""Four prefill workers send to one decode worker at once: its price reaches them, and they send less than each would by itself."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch

from abkt.capacity import Capacity
from abkt.codec.codec import Codec
from abkt.kv.pool import Pool
from abkt.kv.segments import Segments
from abkt.serve.control import WorkerConfig
from abkt.serve.engine.sampling import Choice
from abkt.serve.worker.decode import DecodeWorker
from abkt.serve.worker.equipment import Equipment
from abkt.serve.worker.prefill import PrefillWorker
from abkt.spec import KVLayout, ModelSpec
from abkt.transfer.link import PacedLink
from tests.serve.test_refining import WAIT_S, Said

SENDERS = 4
TOKENS = 1000
FLEET = {
    "_target_": "abkt.policy.bitrate.fleet.Fleet",
    "link": {"_target_": "abkt.policy.bandwidth.Bandwidth", "initial_bytes_per_s": 1e6},
    "target_distortion": 0.0,
    "mean_distortion": 0.3,
    "max_distortion": 0.3,
}


def test_the_price_of_the_receiver_holds_back_those_who_see_no_crowd() -> None:
    heard, deaf = (incast(hears) for hears in (True, False))
    assert heard.bytes < deaf.bytes  # each alone would have sent more: to itself the link seems less crowded
    assert heard.price > deaf.price
    assert 0 < deaf.distortion < 0.3  # nobody broke the bounds for it, nor had all that could be sent
    assert 0 < heard.distortion < 0.3


@dataclass(frozen=True)
class Outcome:
    """bytes: of all transfers. price: the highest that a sender saw as its last was acknowledged. distortion: the worst."""

    bytes: int
    price: float
    distortion: float


class Deaf:
    """Hears no price."""

    def update(self, now_s: float, per_byte: float) -> None: ...

    def per_byte(self, now_s: float) -> float:
        return 0.0


class MadeUp:
    """Stands for an Engine: KV that differs from head to head in how much it varies."""

    def __init__(self) -> None:
        model = ModelSpec("made-up", layers=4, kv_heads=4, head_dim=64, dtype="bfloat16", hidden=256, heads=4, max_tokens=2048)
        self.layout = KVLayout(model, blocks=SENDERS * 140, block_tokens=16)
        self.pool = Pool(self.layout)
        values = torch.randn(self.pool.data.shape, generator=torch.Generator().manual_seed(1))
        self.pool.data.copy_(values * torch.logspace(0, 1, 4)[:, None, None] * torch.logspace(0, 1, 4)[:, None, None, None, None])

    def begin(self, *_: object) -> Choice:
        return Choice(3, 1.0)


def incast(hears: bool) -> Outcome:
    """Four fifths of a second of work for the receiver's NIC, of which each sender has one."""
    config = WorkerConfig("d0", "decode", "", blocks=SENDERS * 140, block_tokens=16, max_batch=4, importance_window=0)
    engine = MadeUp()
    equipment = Equipment(engine, Codec(engine.layout), Segments(engine.layout.blocks))  # type: ignore[arg-type]
    rate = SENDERS * equipment.codec.encode(engine.pool, range(63), TOKENS).ends[-1] / 0.8
    decode, origin_s = DecodeWorker(config, Said(), equipment), time.monotonic()  # type: ignore[arg-type]
    network = {"starts_s": [0.0], "bytes_per_s": [rate], "period_s": math.inf}
    decode._handle({"op": "run", "origin_s": origin_s, "network": network})
    link = PacedLink(Capacity.constant(rate))
    workers = [PrefillWorker(replace(config, name=f"p{i}", role="prefill"), Said(), equipment) for i in range(SENDERS)]  # type: ignore[arg-type]
    try:
        for worker in workers:
            run = {"origin_s": origin_s, "profile": None, "bitrate": FLEET, "network": network, "pacing": "userspace", "peers": {}}
            worker._begin(run)
            worker.pacing.link = link
            worker._meet("d0", decode.receiver.address)
            if not hears:
                worker.peers["d0"].told = Deaf()  # type: ignore[assignment]
        for number, worker in enumerate(workers):
            request = {"request_id": number, "tokens": list(range(TOKENS)), "destination": "d0", "deadline_s": 60.0, "more": {"osl": 8}}
            worker._prefill(request)
        sent, price = [], 0.0
        for worker in workers:
            worker.control.inbox.get(timeout=WAIT_S)  # its memory is free
            price = max(price, worker.peers["d0"].price_per_byte(time.monotonic() - origin_s))
        for worker in workers:
            while not (said := [message for message in worker.control.said if message["event"] == "sent"]):
                time.sleep(0.001)
            sent += said
    finally:
        for worker in workers:
            worker._end()
        decode.receiver.close()
    return Outcome(
        sum(message["wire_bytes"] for message in sent),
        price,
        max(message["distortion"] for message in sent),
    )
