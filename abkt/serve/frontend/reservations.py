"""What the frontend has reserved on each worker. Routing and roles policies see workers through these reservations.

The memory that a request needs on its decode worker is reserved before its prefill begins, so it is free when the KV arrives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from abkt.capacity import Capacity
from abkt.policy.build import build
from abkt.policy.view import BitratePolicy, Delivered, GoodputSample, Refined, TransferView
from abkt.profile.expect import kv_deadline_s
from abkt.profile.schema import Profile
from abkt.serve.expect import quoted, serving_view
from abkt.serve.frontend.attempt import Attempt
from abkt.serve.reports import AttemptFailed, AttemptReport, Prefilled, TransferSent
from abkt.spec import KVLayout

UNMEASURED_S = 1e-3  # prefill seconds per token until a prompt was measured; it only serves to order queues by length
LEARN = 0.3  # weight of the newest observation
SUSPECT_S = 10.0  # how long a pair is avoided after one of its transfers failed


@dataclass(slots=True)
class Expectations:
    """Expected durations, from the profile or, without one, from earlier prompts. device: device of the workers' pools."""

    profile: Profile | None
    layout: KVLayout
    slo_ttft_s: float
    device: str = "cpu"
    s_per_token: float = UNMEASURED_S
    _seen: bool = False

    def prefill_s(self, isl: int) -> float:
        return self.profile.fit("prefill").seconds(tokens=isl) if self.profile else isl * self.s_per_token

    def prefilled(self, isl: int, seconds: float) -> None:
        self.s_per_token += (seconds / isl - self.s_per_token) * (LEARN if self._seen else 1.0)
        self._seen = True

    def deadline_s(self, arrival_s: float, isl: int) -> float:
        """The time at which KV should be usable."""
        return kv_deadline_s(self.profile, arrival_s, isl, self.slo_ttft_s) if self.profile else arrival_s + self.slo_ttft_s

    def view(self, isl: int, deadline_s: float) -> TransferView:
        return serving_view(self.profile, self.layout.model, isl, deadline_s, self.device)


@dataclass(slots=True)
class PrefillReservations:
    """Reservations on one prefill worker; implements PrefillLoad. jobs: attempt id -> expected prefill seconds, until it is computed."""

    name: str
    expect: Expectations
    jobs: dict[int, float] = field(default_factory=dict)

    @property
    def queued_s(self) -> float:
        return sum(self.jobs.values())

    @property
    def free_s(self) -> float:
        """The same order as queued_s, which here does not fall as time passes."""
        return self.queued_s

    def prefill_s(self, isl: int, cached: int = 0) -> float:
        return self.expect.prefill_s(isl - cached)

    def cached_tokens(self, hash_ids: tuple[int, ...]) -> int:
        """Always 0: real workers have no prefix cache."""
        return 0


@dataclass(slots=True)
class DecodeReservations:
    """Reservations on one decode worker; implements DecodeLoad. promised: attempt id -> blocks reserved for it."""

    name: str
    blocks: int
    promised: dict[int, int] = field(default_factory=dict)
    tpot_s: float = 0.0
    active: int = 0
    kv_used: float = 0.0

    @property
    def free_blocks(self) -> int:
        return self.blocks - sum(self.promised.values())

    def promise(self, attempt_id: int, blocks: int) -> None:
        self.promised[attempt_id] = blocks
        self._count()

    def free(self, attempt_id: int) -> None:
        self.promised.pop(attempt_id, None)
        self._count()

    def _count(self) -> None:
        self.active, self.kv_used = len(self.promised), 1 - self.free_blocks / self.blocks

    def wait_s(self, isl: int) -> float:
        """Always 0: a request is placed only if there is memory for it."""
        return 0.0


@dataclass(slots=True)
class PairReservations:
    """Reservations on the link of one prefill and one decode worker. backlog: attempt id -> expected wire bytes, until they are sent.

    policy: the frontend's own instance of the bitrate policy, for quotes; it observes each transfer when it ends. The prefill worker's
    instance makes the decisions and observes each frame.
    """

    policy: BitratePolicy
    backlog: dict[int, float] = field(default_factory=dict)
    suspect_until_s: float = -math.inf

    @property
    def backlog_bytes(self) -> float:
        return sum(self.backlog.values())


class Reservations:
    """The reservations on all workers and pairs. bitrate: a policy's configuration. network: its rate is used for quotes while the policy
    has no estimate."""

    def __init__(self, expect: Expectations, bitrate: Mapping[str, Any], network: Capacity) -> None:
        self.expect = expect
        self.prefill: dict[str, PrefillReservations] = {}
        self.decode: dict[str, DecodeReservations] = {}
        self._bitrate = bitrate
        self._network = network
        self._pairs: dict[tuple[str, str], PairReservations] = {}

    def enter(self, name: str, role: str) -> None:
        """Add a worker that serves in this role."""
        if role == "prefill":
            self.prefill.setdefault(name, PrefillReservations(name, self.expect))
        else:
            self.decode.setdefault(name, DecodeReservations(name, self.expect.layout.blocks))

    def leave(self, name: str) -> None:
        """Remove a worker and all reservations on it."""
        self.prefill.pop(name, None)
        self.decode.pop(name, None)
        for pair in [pair for pair in self._pairs if name in pair]:
            del self._pairs[pair]

    def holds_nothing(self, name: str) -> bool:
        prefill, decode = self.prefill.get(name), self.decode.get(name)
        sends = any(pair.backlog for (source, _), pair in self._pairs.items() if source == name)
        return not (prefill and prefill.jobs) and not (decode and decode.promised) and not sends

    def pair(self, source: str, target: str) -> PairReservations:
        key = source, target
        if key not in self._pairs:
            self._pairs[key] = PairReservations(build(self._bitrate))
        return self._pairs[key]

    def quote_s(self, source: str, target: str, isl: int, arrival_s: float, now_s: float) -> float:
        """Expected seconds from the end of prefill to usable KV, according to the pair's policy and its estimate of the link."""
        pair, expect = self.pair(source, target), self.expect
        view = expect.view(isl, expect.deadline_s(arrival_s, isl))
        starts_s = now_s + self.prefill[source].queued_s + expect.prefill_s(isl)
        encode_s, wire_bytes, expand_s = quoted(view, pair.policy.decide(starts_s, view))
        rate = pair.policy.estimate_bytes_per_s(now_s)
        if math.isnan(rate):
            rate = self._network.at(max(0.0, now_s))[0]
        return encode_s + (pair.backlog_bytes + wire_bytes) / rate + expand_s

    def promise(self, attempt_id: int, source: str, target: str, isl: int, osl: int, now_s: float) -> None:
        """Reserve decode memory, prefill time and link bytes for an attempt on these two workers."""
        expect = self.expect
        self.prefill[source].jobs[attempt_id] = expect.prefill_s(isl)
        self.decode[target].promise(attempt_id, expect.layout.blocks_for(isl + osl))
        pair, view = self.pair(source, target), expect.view(isl, now_s + expect.slo_ttft_s)
        pair.backlog[attempt_id] = quoted(view, pair.policy.decide(now_s, view))[1]

    def follow(self, attempt: Attempt, report: AttemptReport, now_s: float) -> None:
        """Update the reservations after a worker's report on an attempt in progress."""
        source, destination = attempt.workers
        match report:
            case Prefilled():
                self._computed(report.attempt_id, source)
                self.expect.prefilled(attempt.prompt.isl, report.prefill_end_s - report.prefill_start_s)
            case TransferSent():
                self._sent(report, source, destination, now_s)
                self._delivered(report, source, destination, attempt.prompt.isl, now_s)
            case AttemptFailed():
                self._computed(report.attempt_id, source)
                if pair := self._pairs.get((source, destination)):
                    pair.backlog.pop(report.attempt_id, None)
                    pair.suspect_until_s = now_s + SUSPECT_S

    def _sent(self, report: TransferSent, source: str, destination: str, now_s: float) -> None:
        self._computed(report.attempt_id, source)
        if pair := self._pairs.get((source, destination)):
            pair.backlog.pop(report.attempt_id, None)
            pair.suspect_until_s = -math.inf
            if report.wire_busy_s > 0:
                pair.policy.observe(now_s, GoodputSample(report.wire_bytes, report.wire_busy_s))

    def _delivered(self, report: TransferSent, source: str, destination: str, isl: int, now_s: float) -> None:
        """Tell the pair's policy of a complete transfer; policies with a distortion budget need this."""
        if pair := self._pairs.get((source, destination)):
            view = replace(self.expect.view(isl, now_s), encode_s=0.0)
            seconds = report.acked_s - report.granted_s
            pair.policy.delivered(now_s, Delivered(report.distortion, pair.policy.decide(now_s, view), view, seconds))

    def forget(self, attempt_id: int, source: str) -> None:
        """Free the prefill worker's share of an attempt that was abandoned or had nothing to send."""
        self._computed(attempt_id, source)
        for (name, _), pair in self._pairs.items():
            if name == source:
                pair.backlog.pop(attempt_id, None)

    def refined(self, source: str, target: str, refined: Refined, now_s: float) -> None:
        """Tell the pair's policy the result of a refinement; policies with a distortion budget need this."""
        if pair := self._pairs.get((source, target)):
            pair.policy.refined(now_s, refined)

    def freed(self, attempt_id: int, target: str, tpot_s: float = math.nan) -> None:
        """Free the blocks that an attempt had on the decode worker. tpot_s: seconds per token of that attempt; nan: unknown."""
        if decode := self.decode.get(target):
            decode.free(attempt_id)
            if not decode.promised:
                decode.tpot_s = 0.0  # an idle worker has no iterations
            elif not math.isnan(tpot_s):
                decode.tpot_s = tpot_s

    def has_room(self, target: str, tokens: int) -> bool:
        return self.expect.layout.blocks_for(tokens) <= self.decode[target].free_blocks

    def suspect(self, source: str, target: str, now_s: float) -> bool:
        pair = self._pairs.get((source, target))
        return pair is not None and pair.suspect_until_s > now_s

    def _computed(self, attempt_id: int, source: str) -> None:
        if prefill := self.prefill.get(source):
            prefill.jobs.pop(attempt_id, None)
