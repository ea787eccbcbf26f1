"""The thread that sends for a pair of nodes, one transfer at a time, in order.

It waits until the decode side has reserved memory for the whole request. Then the bytes flow at the max-min fair rate, and the constant
time of the calls follows the last byte. Lost frames are sent again retry_s later, until none is lost. If no byte has passed for timeout_s,
the transfer is offered again after backoff_s and continues where it stopped.

A pair has a sender only while it has something to send, because a thousand nodes make a million pairs.

Not modelled: the cost of acknowledging besides its delay; a connection that breaks in the middle of the bytes.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from sim.job import Job
from sim.records import delivered_transfer
from sim.timers import Process, Wake
from sim.transfer.context import TransferContext
from sim.transfer.refinement import Refinement
from sim.transfer.transfer import SimulatedTransfer

if TYPE_CHECKING:
    from sim.transfer.pair import NodePair


class SenderProcess:
    """A process that `begin` lends to a pair. It becomes idle in the context again when the pair's queue is empty.

    job: the job under way, None once it was aborted.
    """

    __slots__ = ("context", "job", "pair", "wake")

    def __init__(self, context: TransferContext) -> None:
        self.context = context
        self.wake = Wake(context.clock)
        self.pair: NodePair
        self.job: Job | None = None
        context.clock.process(send(self))

    def begin(self, pair: NodePair) -> None:
        self.pair = pair
        self.wake.after(0.0)

    def aborted(self) -> bool:
        """Whether the job under way was aborted. It may happen whenever the process waits."""
        return self.job is None

    def abort(self, job: Job) -> bool:
        """Abort the transfer under way, if it is this job's: the process wakes at once and releases it."""
        if job is not self.job:
            return False
        self.job, job.aborted = None, True
        if not job.reservation.reserved and not self.pair.target.memory.cancel_wait(self.wake):
            job.reservation.reserved = True  # the memory was granted at this very time
        self.wake.after(0.0)
        return True

    def reserve(self, job: Job) -> bool:
        """Reserve the memory to decode the job. Returns False if it is not free yet; it is then reserved when `wake` fires."""
        memory, reservation = self.pair.target.memory, job.reservation
        self.job = job
        if not reservation.reserved:  # otherwise it was reserved before prefill
            if not memory.can_reserve(reservation.blocks):
                memory.wait_for(reservation.blocks, self.wake)
                return False
            memory.reserve(reservation.blocks)
            reservation.reserved = True
        return True


def send(sender: SenderProcess) -> Process:
    wake, context = sender.wake, sender.context
    delay_s, transport = context.delay_s, context.transport
    while True:
        yield wake
        pair = sender.pair
        queue = pair.queue
        while queue:
            job = queue.popleft()
            if not sender.reserve(job):
                yield wake
                if not sender.aborted():
                    job.reservation.reserved = True
            if delay_s > 0 and not sender.aborted():
                yield wake.after(pair.one_way_trips() * delay_s)
            if sender.aborted():
                pair.leave_backlog(job)
                pair.release(job)
                continue
            transfer = SimulatedTransfer(pair, job, wake)
            arrived = yield from send_groups(transfer, sender)
            if arrived:
                calls_s = pair.calls_s(transfer.calls())
                if calls_s + delay_s > 0:
                    yield wake.after(calls_s + delay_s)
            if sender.aborted():
                transfer.give_up("the request was given up")
                pair.release(job)
                continue
            sender.job = None
            if not arrived:
                transfer.fail(f"no byte passed for {transport.timeout_s:g} s, {transport.retries + 1} times")
                continue
            transfer.deliver()
            start_decoding(transfer)
            if delay_s > 0:
                yield wake.after(delay_s)  # the acknowledgement arrives before the next offer
        pair.sender = pair.queue = None
        context.idle.append(sender)


def send_groups(transfer: SimulatedTransfer, sender: SenderProcess) -> Generator[Any, None, bool]:
    """Send the bytes, group by group. Returns False if there were too many attempts or the request was aborted."""
    wake, pair, transport, job = sender.wake, transfer.pair, transfer.context.transport, transfer.job
    for group in range(transfer.groups):
        if group > 0:
            assert job.transfer.pipeline is not None
            if not job.transfer.pipeline.has_group(group, wake):
                yield wake
                if sender.aborted():
                    return False
        pair.begin_sending()
        transfer.begin(group)
        while True:
            yield wake
            if sender.aborted():
                transfer.stop()
                break
            if transfer.stalled():
                transfer.stop()
                if transfer.retries == transport.retries:
                    pair.end_sending()
                    return False
                yield wake.after(transport.backoff_s + pair.one_way_trips() * transfer.context.delay_s)
                if sender.aborted():
                    break
                transfer.retry()
            elif transfer.extends():
                continue
            elif lost := transfer.lost_frames():
                transfer.stop()
                yield wake.after(transport.retry_s)
                if sender.aborted():
                    break
                transfer.send_again(lost)
            else:
                transfer.end()
                break
        pair.end_sending()
        if sender.aborted():
            return False
    return True


def start_decoding(transfer: SimulatedTransfer) -> None:
    """The transfer is delivered: give the KV to the decode node, and release the source unless a refinement follows."""
    job, pair = transfer.job, transfer.pair
    job.transfer.refinement = Refinement.start(transfer) if transfer.may_refine() else None
    if job.transfer.refinement is None:
        pair.source.prompts.release(job)
        transfer.context.ended(delivered_transfer(transfer))
    job.transfer.pipeline = None
    pair.target.decoding.arrive(job)
