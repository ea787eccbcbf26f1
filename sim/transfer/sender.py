"""The thread that sends for a pair: its transfers in order, one at a time.

It waits until the decode side has reserved memory for the whole request, then the bytes flow at the max-min fair rate; alpha for each call
comes after the last byte. Frames that were lost are sent again retry_s later, until none is. Where no byte has passed for timeout_s, the
transfer is offered again after backoff_s, and goes on where it was.

Senders are lent: a pair that has nothing to send has none, for a thousand nodes make a million pairs.

Not modelled: what acknowledging takes beside its way; a connection that breaks in the middle of the bytes.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from simpy.events import Event

from sim.clock import Wake
from sim.node.job import Job
from sim.transfer.transfer import SimulatedTransfer

if TYPE_CHECKING:
    from sim.transfer.pair import NodePair, TransferContext


class SenderProcess:
    """A process that `begin` gives a pair; it goes back to the carrier's idle ones when the pair's queue is empty."""

    __slots__ = ("carrier", "granted", "job", "pair", "wake")

    def __init__(self, carrier: TransferContext) -> None:
        self.carrier = carrier
        self.wake = Wake(carrier.clock)
        self.pair: NodePair
        self.job: Job | None = None  # under way
        self.granted = False  # memory to decode it
        carrier.clock.process(send(self))

    def begin(self, pair: NodePair) -> None:
        self.pair = pair
        self.wake.after(0.0)

    def withdraw(self, job: Job) -> bool:
        """What is under way is given up, if that is it: the process goes on at once, and lets it go."""
        if job is not self.job:
            return False
        self.job, job.gone = None, True
        if not self.granted and self.pair.target.memory.give_up(self.wake) is False:
            self.granted = True  # at this very moment
        self.wake.after(0.0)
        return True

    def reserve(self, job: Job) -> bool:
        """False: it will be, when `wake` rings."""
        memory = self.pair.target.memory
        self.job = job
        self.granted = job.reserved_s == job.reserved_s  # nan: not yet; some have it since before their prefill
        if not self.granted:
            if not memory.can_reserve(job.decode_blocks):
                memory.waited_for(job.decode_blocks, self.wake)
                return False
            memory.reserve(job.decode_blocks)
            self.granted = True
        return True


def send(sender: SenderProcess) -> Generator[Event, None, None]:
    wake, carrier = sender.wake, sender.carrier
    delay_s, transport = carrier.delay_s, carrier.transport
    while True:
        yield wake
        pair = sender.pair
        queue = pair.queue
        while queue:
            job = queue.popleft()
            if not sender.reserve(job):
                yield wake
                if sender.job:
                    sender.granted = True
            if delay_s > 0 and sender.job:
                yield wake.after(pair.ways() * delay_s)
            if sender.job is None:
                pair.forget(job)
                pair.let_go(job, sender.granted)
                continue
            transfer = SimulatedTransfer(pair, job, wake)
            arrived = yield from carry(transfer, sender)
            if arrived:
                calls_s = pair.calls_s(transfer.calls())
                if calls_s + delay_s > 0:
                    yield wake.after(calls_s + delay_s)
            if sender.job is None:
                transfer.give_up("the request was given up")
                pair.let_go(job, held=True)
                continue
            sender.job = None
            if not arrived:
                transfer.fail(f"no byte passed for {transport.timeout_s:g} s, {transport.retries + 1} times")
                continue
            transfer.deliver()
            if delay_s > 0:
                yield wake.after(delay_s)  # the acknowledgement's way, before the next offer
        pair.sender = pair.queue = None
        carrier.idle.append(sender)


def carry(transfer: SimulatedTransfer, sender: SenderProcess) -> Generator[Event, None, bool]:
    """Bytes flow, group by group. False if it was tried too often, or the request was given up."""
    wake, pair, transport = sender.wake, transfer.pair, transfer.carrier.transport
    for group in range(transfer.groups):
        if group > 0:
            assert transfer.job.pipeline is not None
            if not transfer.job.pipeline.gives(group, wake):
                yield wake
                if sender.job is None:
                    return False
        pair.hold()
        transfer.begin(group)
        while True:
            yield wake
            if sender.job is None:
                transfer.stop()
                break
            if transfer.stalled():
                transfer.stop()
                if transfer.record.retries == transport.retries:
                    pair.free()
                    return False
                yield wake.after(transport.backoff_s + pair.ways() * transfer.carrier.delay_s)
                if sender.job is None:
                    break
                transfer.go_on(retried=True)
            elif transfer.extends():
                continue
            elif lost := transfer.lost_frames():
                transfer.stop()
                yield wake.after(transport.retry_s)
                if sender.job is None:
                    break
                transfer.send_again(lost)
            else:
                transfer.end()
                break
        pair.free()
        if sender.job is None:
            return False
    return True
