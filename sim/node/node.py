"""A node: prompts and decoding on one GPU, in iterations; one event for each change of what it does, however many tokens lie between.

An iteration gives each request of the batch a token and takes prompts, or chunks of them, beside it: decoding comes first, prompts get
what is left of the token budget, in order of arrival; with a budget of 0, one whole prompt at a time. It lasts as long as the batch's
iteration and the prompts' own passes, with one overhead, the larger of the two. A node of a disaggregated cluster has only the one or only
the other to do; the difference between a prefill node, a decode node and one for both is what it is given.

At an iteration's end: who is complete leaves; finished prompts are encoded, one after another on the same GPU, and given to the sender, or
join the batch where they are decoded here; what refines KV that is here, or is only a part of it, is expanded; KV that has arrived whole is
expanded, as far as there are places, and joins. What comes meanwhile
waits for the next end.

Not modelled: streams that overlap codec and passes; chunks that make attention less efficient.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from simpy.events import Event

from sim.node.prefill import PromptSide


class Node(PromptSide):
    """role: what it is given now: prefill | decode | both, or "" while it changes; see sim.roles. weights: what it can do, by what the
    fastest node of its cluster does."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.prefill_weight = self.decode_weight = 1.0
        self.clock.process(self.run())

    def at_rest(self) -> bool:
        return not (self.active or self.prompts or self.chunk or self.prefilled or self.waiting)

    def run(self) -> Generator[Event, None, None]:
        clock, wake = self.clock, self.wake
        while True:
            yield wake
            self.advance()
            self.release_finished()
            while self.prefilled:
                job = self.prefilled.popleft()
                self.state = "coding"
                encoded_s = self.encode(job)
                if encoded_s > clock.now:
                    yield wake.at(encoded_s)
                self.hand_over(job)
            while self.chores:
                self.state = "coding"
                chores, self.chores = self.chores, []
                yield wake.after(sum(seconds for seconds, _ in chores))
                for _, then in chores:
                    then()
            if self.batch.full:
                self.make_room()
            if self.waiting and (admitted := self.admit()):
                self.state = "coding"
                yield wake.at(self.expand(admitted))
                self.join(admitted)
            if self.leaving:
                self.dismiss()
            self.plan()
