"""Four prefill workers send to one decode worker at once. They receive its price, so each sends less than it would alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from abkt.capacity import Capacity
from abkt.codec.codec import Codec
from abkt.kv.pool import Pool
from abkt.kv.segments import Segments
from abkt.serve.commands import StartDecodeRun, StartPrefillRun, SubmitPrompt, WorkerConfig
from abkt.serve.engine.generation import Generation
from abkt.serve.engine.sampling import Choice
from abkt.serve.reports import TransferSent
from abkt.serve.worker.decode import DecodeWorker
from abkt.serve.worker.equipment import Equipment
from abkt.serve.worker.prefill import PrefillWorker
from abkt.spec import KVLayout, ModelSpec
from abkt.transfer.link import PacedLink
from tests.serve.in_process import FakeControl

WAIT_S = 30.0
SENDERS = 4
TOKENS = 1000
FLEET = {
    "_target_": "abkt.policy.bitrate.fleet.Fleet",
    "link": {"_target_": "abkt.policy.bandwidth.Bandwidth", "initial_bytes_per_s": 1e6},
    "target_distortion": 0.0,
    "mean_distortion": 0.3,
    "max_distortion": 0.3,
}


def test_the_receivers_price_makes_senders_send_less() -> None:
    heard, deaf = (incast(hears) for hears in (True, False))
    assert heard.bytes < deaf.bytes  # without the price each sees its own backlog only
    assert heard.price > deaf.price
    assert 0 < deaf.distortion < 0.3  # within the policy's bounds, and less than the whole stream
    assert 0 < heard.distortion < 0.3


@dataclass(frozen=True)
class Outcome:
    """bytes: sum over all transfers. price: the highest price that a sender saw when its transfer was acknowledged. distortion: the highest
    of all transfers."""

    bytes: int
    price: float
    distortion: float


class Deaf:
    """A price that ignores the receiver's updates."""

    def update(self, now_s: float, per_byte: float) -> None: ...

    def per_byte(self, now_s: float) -> float:
        return 0.0


class UnevenEngine:
    """Takes the place of an Engine. The heads of its KV vary by different amounts."""

    def __init__(self) -> None:
        model = ModelSpec("made-up", layers=4, kv_heads=4, head_dim=64, dtype="bfloat16", hidden=256, heads=4, max_tokens=2048)
        self.layout = KVLayout(model, blocks=SENDERS * 140, block_tokens=16)
        self.pool = Pool(self.layout)
        values = torch.randn(self.pool.data.shape, generator=torch.Generator().manual_seed(1))
        self.pool.data.copy_(values * torch.logspace(0, 1, 4)[:, None, None] * torch.logspace(0, 1, 4)[:, None, None, None, None])

    def begin(self, *_: object) -> Choice:
        return Choice(3, 1.0)


def incast(hears: bool) -> Outcome:
    """Run four equal transfers from different senders, together 0.8 s of work for the receiver's NIC."""
    config = WorkerConfig("d0", "decode", "", blocks=SENDERS * 140, block_tokens=16, max_batch=4, importance_window=0)
    engine = UnevenEngine()
    equipment = Equipment(engine, Codec(engine.layout), Segments(engine.layout.blocks))  # type: ignore[arg-type]
    rate = SENDERS * equipment.codec.encode(engine.pool, range(63), TOKENS).ends[-1] / 0.8
    decode, origin_s = DecodeWorker(config, FakeControl(), equipment), time.monotonic()
    network = Capacity.constant(rate)
    decode._handle(StartDecodeRun(origin_s, network))
    link = PacedLink(network)
    controls = [FakeControl() for _ in range(SENDERS)]
    workers = [PrefillWorker(replace(config, name=f"p{i}", role="prefill"), control, equipment) for i, control in enumerate(controls)]
    try:
        for worker in workers:
            worker.run.start(StartPrefillRun(origin_s, network, FLEET, "userspace", None, {}))
            worker.run.pacing.link = link
            worker.run.add_peer("d0", decode.receiver.address)
            if not hears:
                worker.run.peers["d0"].told = Deaf()  # type: ignore[assignment]
        for number, worker in enumerate(workers):
            worker._prefill(SubmitPrompt(number, tuple(range(TOKENS)), "d0", 60.0, Generation(8)))
        price = 0.0
        for worker in workers:
            worker.control.inbox.get(timeout=WAIT_S)  # its memory is free
            price = max(price, worker.run.peers["d0"].price_per_byte(time.monotonic() - origin_s))
        sent = [sent_by(control) for control in controls]
    finally:
        for worker in workers:
            worker.run.close()
        decode.receiver.close()
    return Outcome(
        sum(report.wire_bytes for report in sent),
        price,
        max(report.distortion for report in sent),
    )


def sent_by(control: FakeControl) -> TransferSent:
    while True:
        report = control.reports.get(timeout=WAIT_S)
        if isinstance(report, TransferSent):
            return report
