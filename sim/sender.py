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
from sim.transfer import Transfer

if TYPE_CHECKING:
    from sim.pair import Carrier, Pair


class Sender:
    """A process that `begin` gives a pair; it goes back to the carrier's idle ones when the pair's queue is empty."""

    def __init__(self, carrier: Carrier) -> None:
        self.carrier = carrier
        self.wake = Wake(carrier.clock)
        self.pair: Pair
        carrier.clock.process(send(self))

    def begin(self, pair: Pair) -> None:
        self.pair = pair
        self.wake.after(0.0)


def send(sender: Sender) -> Generator[Event, None, None]:
    wake, carrier = sender.wake, sender.carrier
    delay_s = carrier.delay_s
    while True:
        yield wake
        pair = sender.pair
        memory, queue = pair.target.memory, pair.queue
        while queue:
            job = queue.popleft()
            if job.reserved_s == job.reserved_s:  # nan: not yet; some have it since before their prefill
                pass
            elif memory.can_reserve(job.decode_blocks):
                memory.reserve(job.decode_blocks)
            else:
                yield memory.waited_for(job.decode_blocks, wake)
            if delay_s > 0:
                yield wake.after(pair.ways() * delay_s)
            transfer = Transfer(pair, job, wake)
            if not (yield from carry(transfer, wake)):
                transfer.fail(f"no byte passed for {carrier.transport.timeout_s:g} s, {carrier.transport.retries + 1} times")
                continue
            calls_s = pair.calls_s(transfer.calls())
            if calls_s + delay_s > 0:
                yield wake.after(calls_s + delay_s)
            transfer.deliver()
            if delay_s > 0:
                yield wake.after(delay_s)  # the acknowledgement's way, before the next offer
        pair.sender = pair.queue = None
        carrier.idle.append(sender)


def carry(transfer: Transfer, wake: Wake) -> Generator[Event, None, bool]:
    """Bytes flow, group by group. False if it was tried too often."""
    pair, transport = transfer.pair, transfer.carrier.transport
    for group in range(transfer.groups):
        if group > 0:
            assert transfer.job.pipeline is not None
            yield from transfer.job.pipeline.given(group, wake)
        pair.hold()
        transfer.begin(group)
        while True:
            yield wake
            if transfer.stalled():
                if not transfer.give_up():
                    pair.free()
                    return False
                yield wake.after(transport.backoff_s + pair.ways() * transfer.carrier.delay_s)
                transfer.carrier.network.join(transfer.flow)
            elif transfer.extends():
                continue
            elif lost := transfer.lost_frames():
                transfer.leave()
                yield wake.after(transport.retry_s)
                transfer.send_again(lost)
            else:
                break
        transfer.end()
        pair.free()
    return True
