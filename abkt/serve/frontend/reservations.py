"""The frontend's book of real workers: what routing sees of them, and what a transfer between two of them may take.

What was promised to a decode worker is booked before prefill begins, so its memory is there when the KV comes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from abkt.capacity import Capacity
from abkt.policy.bitrate.break_even import stage_costs
from abkt.policy.build import build
from abkt.policy.view import BitratePolicy, Delivered, GoodputSample, Refined, TransferView
from abkt.profile.expect import expected_view, kv_deadline_s, unmeasured_view
from abkt.profile.schema import Profile
from abkt.serve.control import Message
from abkt.spec import KVLayout

UNMEASURED_S = 1e-3  # of prefill per token, until a prompt was seen: until then it says which queue is longer, and no more
LEARN = 0.3  # what the newest observation weighs
SUSPECT_S = 10.0  # how long a pair is avoided whose transfer failed


@dataclass(slots=True)
class Expectations:
    """What work is expected to take: as the profile says, or else as prompts took so far."""

    profile: Profile | None
    layout: KVLayout
    slo_ttft_s: float
    s_per_token: float = UNMEASURED_S
    _seen: bool = False

    def prefill_s(self, isl: int) -> float:
        return self.profile.fit("prefill").seconds(tokens=isl) if self.profile else isl * self.s_per_token

    def prefilled(self, isl: int, seconds: float) -> None:
        self.s_per_token += (seconds / isl - self.s_per_token) * (LEARN if self._seen else 1.0)
        self._seen = True

    def deadline_s(self, arrival_s: float, isl: int) -> float:
        """When KV should be usable."""
        return kv_deadline_s(self.profile, arrival_s, isl, self.slo_ttft_s) if self.profile else arrival_s + self.slo_ttft_s

    def view(self, isl: int, deadline_s: float) -> TransferView:
        if self.profile:
            return expected_view(self.profile, isl, deadline_s)
        raw_bytes = isl * self.layout.model.kv_bytes_per_token
        return unmeasured_view(raw_bytes, deadline_s)


@dataclass(slots=True)
class PrefillReservations:
    """One prefill worker, as a PrefillLoad. jobs: expected seconds of each try that it has accepted and not done."""

    name: str
    expect: Expectations
    jobs: dict[int, float] = field(default_factory=dict)

    @property
    def queued_s(self) -> float:
        return sum(self.jobs.values())

    @property
    def free_s(self) -> float:
        """Orders workers as queued_s does, which does not fall with time here."""
        return self.queued_s

    def prefill_s(self, isl: int, cached: int = 0) -> float:
        return self.expect.prefill_s(isl - cached)

    def cached_tokens(self, hash_ids: tuple[int, ...]) -> int:
        """None: real workers have no prefix cache."""
        return 0


@dataclass(slots=True)
class DecodeReservations:
    """One decode worker, as a DecodeLoad. promised: blocks of each try that may still hold some there."""

    name: str
    blocks: int
    promised: dict[int, int] = field(default_factory=dict)
    tpot_s: float = 0.0
    active: int = 0
    kv_used: float = 0.0

    @property
    def free_blocks(self) -> int:
        return self.blocks - sum(self.promised.values())

    def promise(self, number: int, blocks: int) -> None:
        self.promised[number] = blocks
        self._count()

    def free(self, number: int) -> None:
        self.promised.pop(number, None)
        self._count()

    def _count(self) -> None:
        self.active, self.kv_used = len(self.promised), 1 - self.free_blocks / self.blocks

    def wait_s(self, isl: int) -> float:
        """None: a request is placed when there is room for it."""
        return 0.0


@dataclass(slots=True)
class PairReservations:
    """One prefill and one decode worker. policy: a bitrate policy of the frontend's own, told of each transfer as it ends; the one that
    decides is at the prefill worker, and is told of each frame. backlog: expected wire bytes of each try that is not sent."""

    policy: BitratePolicy
    backlog: dict[int, float] = field(default_factory=dict)
    suspect_until_s: float = -math.inf


class Reservations:
    """What is promised to whom. bitrate: a policy's configuration. network: the links, for a quote before any estimate."""

    def __init__(self, expect: Expectations, bitrate: Mapping[str, Any], network: Capacity) -> None:
        self.expect = expect
        self.prefill: dict[str, PrefillReservations] = {}
        self.decode: dict[str, DecodeReservations] = {}
        self._bitrate = bitrate
        self._network = network
        self._pairs: dict[tuple[str, str], PairReservations] = {}

    def enter(self, name: str, role: str) -> None:
        """A worker serves in this role."""
        if role == "prefill":
            self.prefill.setdefault(name, PrefillReservations(name, self.expect))
        else:
            self.decode.setdefault(name, DecodeReservations(name, self.expect.layout.blocks))

    def leave(self, name: str) -> None:
        """Whatever was promised to it is void."""
        self.prefill.pop(name, None)
        self.decode.pop(name, None)
        for pair in [pair for pair in self._pairs if name in pair]:
            del self._pairs[pair]

    def holds_nothing(self, name: str) -> bool:
        pairs = (book for pair, book in self._pairs.items() if pair[0] == name)
        prefill, decode = self.prefill.get(name), self.decode.get(name)
        return not (prefill and prefill.jobs) and not (decode and decode.promised) and not any(pair.backlog for pair in pairs)

    def pair(self, source: str, target: str) -> PairReservations:
        key = source, target
        if key not in self._pairs:
            self._pairs[key] = PairReservations(build(self._bitrate))
        return self._pairs[key]

    def quote_s(self, source: str, target: str, isl: int, arrival_s: float, now_s: float) -> float:
        """Expected seconds from the end of prefill to usable KV, by the pair's own policy and what it believes of the link."""
        pair, expect = self.pair(source, target), self.expect
        view = expect.view(isl, expect.deadline_s(arrival_s, isl))
        starts_s = now_s + self.prefill[source].queued_s + expect.prefill_s(isl)
        encode_s, wire_bytes, expand_s = stage_costs(view, pair.policy.decide(starts_s, view))
        rate = pair.policy.estimate_bytes_per_s(now_s)
        if math.isnan(rate):
            rate = self._network.at(max(0.0, now_s))[0]
        return encode_s + (sum(pair.backlog.values()) + wire_bytes) / rate + expand_s

    def promise(self, number: int, source: str, target: str, isl: int, osl: int, now_s: float) -> None:
        """A try is placed. target: empty where nothing is to be transferred."""
        expect = self.expect
        self.prefill[source].jobs[number] = expect.prefill_s(isl)
        if target:
            self.decode[target].promise(number, expect.layout.blocks_for(isl + osl))
            pair, view = self.pair(source, target), expect.view(isl, now_s + expect.slo_ttft_s)
            pair.backlog[number] = stage_costs(view, pair.policy.decide(now_s, view))[1]

    def prefilled(self, number: int, source: str, isl: int, seconds: float) -> None:
        if book := self.prefill.get(source):
            book.jobs.pop(number, None)
        self.expect.prefilled(isl, seconds)

    def sent(self, number: int, source: str, target: str, message: Message | None, now_s: float) -> None:
        """The transfer has ended. message: the prefill worker's `sent`; none: it failed, and the pair is suspect."""
        if book := self.prefill.get(source):
            book.jobs.pop(number, None)
        pair = self._pairs.get((source, target))
        if pair is None:
            return
        pair.backlog.pop(number, None)
        if message is None:
            pair.suspect_until_s = now_s + SUSPECT_S
            return
        pair.suspect_until_s = -math.inf
        if message["wire_busy_s"] > 0:
            pair.policy.observe(now_s, GoodputSample(message["wire_bytes"], message["wire_busy_s"]))

    def forget(self, number: int, source: str) -> None:
        """The prefill worker is done with a try that was given up, or had nothing to send."""
        if book := self.prefill.get(source):
            book.jobs.pop(number, None)
        for pair, between in self._pairs.items():
            if pair[0] == source:
                between.backlog.pop(number, None)

    def delivered(self, source: str, target: str, isl: int, distortion: float, seconds: float, now_s: float) -> None:
        """For policies with a budget of distortion."""
        if pair := self._pairs.get((source, target)):
            view = replace(self.expect.view(isl, now_s), encode_s=0.0)
            pair.policy.delivered(now_s, Delivered(distortion, pair.policy.decide(now_s, view), view, seconds))

    def refined(self, source: str, target: str, refined: Refined, now_s: float) -> None:
        """For the same: what became of a start that was refined."""
        if pair := self._pairs.get((source, target)):
            pair.policy.refined(now_s, refined)

    def freed(self, number: int, target: str, tpot_s: float = math.nan) -> None:
        """The decode worker holds nothing of it any more."""
        if book := self.decode.get(target):
            book.free(number)
            if not book.promised:
                book.tpot_s = 0.0  # it has nothing to iterate
            elif not math.isnan(tpot_s):
                book.tpot_s = tpot_s

    def has_room(self, target: str, tokens: int) -> bool:
        return self.expect.layout.blocks_for(tokens) <= self.decode[target].free_blocks

    def suspect(self, source: str, target: str, now_s: float) -> bool:
        pair = self._pairs.get((source, target))
        return pair is not None and pair.suspect_until_s > now_s
