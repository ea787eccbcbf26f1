"""Each admission policy's rule on every request."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.admission.always import Always
from abkt.policy.admission.base import ACCEPT, LOCAL, RESERVE, WAIT
from abkt.policy.admission.ladder import Ladder
from abkt.policy.admission.reject_late import RejectLate
from abkt.policy.admission.reserve import Reserve


@dataclass
class Asks:
    has_room: bool = True
    routed_s: float = 0.5
    local_s: float = math.inf
    waited_s: float = 0.0
    ttft_slo_s: float = 1.0

    def room(self) -> bool:
        return self.has_room

    def ttft_s(self) -> float:
        return self.routed_s

    def local_ttft_s(self) -> float:
        return self.local_s


times = st.sampled_from([0.0, 0.4, 1.0, 1.5, 7.0])
applicants = st.builds(Asks, st.booleans(), times, st.sampled_from([0.2, 3.0, math.inf]), times)


@given(applicants)
def test_always_and_reserve_admit_by_their_definitions(asks) -> None:
    assert Always().decide(0.0, asks) == ACCEPT
    assert Reserve().decide(0.0, asks) == (RESERVE if asks.has_room else WAIT)
    waited_long = Reserve(max_wait_s=1.0).decide(0.0, asks)
    assert (waited_long.action == "reject") == (asks.waited_s > 1.0)


@given(applicants, st.sampled_from([0.5, 1.0, 2.0]))
def test_reject_late_admits_by_its_definition(asks, slo_factor) -> None:
    verdict = RejectLate(slo_factor).decide(0.0, asks)
    assert (verdict.action == "accept") == (asks.routed_s <= slo_factor)
    if verdict.action == "reject" and slo_factor >= 1:
        assert verdict.retry_after_s == pytest.approx(asks.routed_s - 1.0)


def test_the_ladder_takes_one_step_after_another() -> None:
    ladder = Ladder()
    assert ladder.decide(0.0, Asks()) == RESERVE
    assert ladder.decide(0.0, Asks(has_room=False)) == WAIT
    assert ladder.decide(0.0, Asks(has_room=False, waited_s=1.1, routed_s=1.6)).action == "reject"
    assert ladder.decide(0.0, Asks(routed_s=1.2, local_s=0.9)) == LOCAL
    turned_away = ladder.decide(0.0, Asks(routed_s=3.0, local_s=1.75))
    assert (turned_away.action, turned_away.retry_after_s) == ("reject", 0.75)
    assert turned_away.reason == "a TTFT of 1.75 s is expected, the SLO is 1 s"
    assert Ladder(slo_factor=2.0).decide(0.0, Asks(routed_s=1.9)) == RESERVE


@pytest.mark.parametrize(
    ("policy", "field", "value"), [(Reserve, "max_wait_s", -1.0), (RejectLate, "slo_factor", 0.0), (Ladder, "slo_factor", math.nan)]
)
def test_impossible_fields_are_refused(policy, field, value) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value:g}; it must"):
        policy(**{field: value})
