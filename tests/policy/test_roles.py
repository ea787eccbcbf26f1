"""Properties of every roles policy, and each policy's rule by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.policy.roles.arrow import Arrow
from abkt.policy.roles.base import RoleChange
from abkt.policy.roles.colocated import Colocated
from abkt.policy.roles.conditional import Conditional
from abkt.policy.roles.hysteresis import Hysteresis
from abkt.policy.roles.load_aware import LoadAwareRoles
from abkt.policy.roles.loads import FLOOR, loads
from abkt.policy.roles.scheduled import Scheduled
from abkt.policy.roles.static import Static
from abkt.policy.routing.base import RequestView

POLICIES: dict[str, Callable] = {
    "static": Static,
    "colocated": Colocated,
    "conditional": Conditional,
    "arrow": Arrow,
    "load_aware": LoadAwareRoles,
    "scheduled": lambda: Scheduled(changes=[{"at_s": i // 2, "worker": "n", "role": ("prefill", "decode")[i % 2]} for i in range(12)]),
}
REQUEST = RequestView(0, isl=1000, osl=100, arrival_s=0.0)


@dataclass
class Node:
    role: str = "prefill"
    queued_s: float = 0.0
    kv_due: float = 0.0
    tpot_s: float = 0.0
    active: int = 0
    wait: float = 0.0
    prefill_weight: float = 1.0
    decode_weight: float = 1.0
    name: str = "n"
    kv_used: float = 0.0

    def prefill_s(self, isl: int, cached: int = 0) -> float:
        return isl * 1e-5

    def cached_tokens(self, hash_ids: tuple[int, ...]) -> int:
        return 0

    def wait_s(self, isl: int) -> float:
        return self.wait


nodes = st.lists(
    st.builds(
        Node,
        st.sampled_from(["prefill", "decode", "both", ""]),
        st.sampled_from([0.0, 0.5, 1.5, 9.0]),
        st.sampled_from([0.0, 0.4, 0.95]),
        st.sampled_from([0.0, 0.03, 0.09]),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("name", POLICIES)
@given(looks=st.lists(nodes, min_size=1, max_size=8))
def test_no_side_is_left_empty_and_the_same_calls_give_the_same_changes(name, looks) -> None:
    one, other = POLICIES[name](), POLICIES[name]()
    for now_s, cluster in enumerate(looks):
        changes = one.decide(float(now_s), cluster)
        assert changes == other.decide(float(now_s), cluster)
        before = [node.role for node in cluster]
        after = list(before)
        for change in changes:
            assert before[change.node] != change.role
            after[change.node] = "" if change.drain else change.role
        for side in ("prefill", "decode"):
            had = [role for role in before if role in (side, "both")]
            assert not had or [role for role in after if role in (side, "both")]
        where = one.where(float(now_s), REQUEST, cluster[0], cluster[-1])
        assert where == other.where(float(now_s), REQUEST, cluster[0], cluster[-1])


def test_loads_are_those_worked_out_by_hand() -> None:
    """Weighted by the nodes' speed; a changing node does not count, a node with both roles counts on both sides."""
    cluster = [
        Node("prefill", queued_s=2.0, prefill_weight=0.5),
        Node("prefill", queued_s=0.5),
        Node("decode", kv_due=0.45, tpot_s=0.04),
        Node("decode", kv_due=0.9, decode_weight=0.25),
        Node("", queued_s=99.0, kv_due=1.0),
    ]
    now = loads(cluster, ttft_slo_s=1.0, tpot_slo_s=0.05)
    assert (now.prefill_nodes, now.decode_nodes) == ((0, 1), (2, 3))
    assert now.prefill_load == pytest.approx((0.5 * 2.0 + 0.5) / 1.5)
    assert now.decode_load == pytest.approx((0.8 + 0.25 * 1.0) / 1.25)  # 0.04 / 0.05 is more than 0.45 / 0.9
    both = replace(now, prefill_nodes=(0,), decode_nodes=(0,), prefill_load=3.0, decode_load=1.0)
    assert loads([Node("both", queued_s=3.0, kv_due=0.9)], 1.0, 0.05) == both
    assert loads([Node("prefill")], 1.0, 0.05).prefill_load == FLOOR


def test_hysteresis_enters_at_two_of_three_and_leaves_at_four_of_five() -> None:
    imbalance = Hysteresis()
    assert [imbalance.update(change) for change in (True, False, False, True, True)] == [False, False, False, False, True]
    assert [imbalance.update(change) for change in (True, True, False, True, True)] == [True, True, True, True, False]
    assert [imbalance.update(change) for change in (True, False, True)] == [False, False, True]


def state(prompts: float, tokens: float, p: int = 2, d: int = 3) -> list[Node]:
    """The two sides with these loads, for SLOs of 1 s and 50 ms."""
    return [
        *(Node("prefill", queued_s=prompts + 0.1 * (i == 0)) for i in range(p)),
        *(Node("decode", kv_due=0.9 * tokens, active=5 + i) for i in range(d)),
    ]


def test_load_aware_lends_cycles_then_a_node() -> None:
    policy = LoadAwareRoles(ttft_slo_s=1.0, tpot_slo_s=0.05, lend_periods=2)
    source, target = Node("prefill", queued_s=2.0), Node("decode", wait=0.1, tpot_s=0.02)
    assert policy.decide(0.0, state(2.0, 0.3)) == []  # one check of two
    assert policy.where(0.0, REQUEST, source, target) == "split"
    assert policy.decide(1.0, state(2.0, 0.3)) == []  # imbalanced: cycles first
    assert policy.loaded == "prefill"
    assert policy.where(1.0, REQUEST, source, target) == "target"
    assert policy.where(1.0, REQUEST, source, replace(target, wait=3.0)) == "split"  # the target is busier than the source
    assert policy.decide(2.0, state(2.0, 0.3)) == [RoleChange(2, "prefill")]  # the decode node with the fewest requests drains
    assert policy.decide(3.0, [*state(2.0, 0.3)[:2], Node(""), *state(2.0, 0.3)[3:]]) == []  # one change at a time
    for now_s in (4.0, 5.0, 6.0):
        policy.decide(now_s, state(0.3, 0.3))
    assert policy.loaded == "prefill"  # three of five do not end it
    policy.decide(7.0, state(0.3, 0.3))
    assert policy.loaded == ""
    assert policy.where(7.0, REQUEST, source, target) == "split"


def test_load_aware_replaces_the_last_node_of_the_loaded_side_when_it_dies() -> None:
    """The load of a side without nodes is the floor, so the side that was loaded stays loaded while the other one is idle."""
    policy = LoadAwareRoles(ttft_slo_s=1.0, tpot_slo_s=0.05, lend_periods=2)
    prefill = [Node("prefill"), Node("prefill")]
    for now_s in (0.0, 1.0):
        policy.decide(now_s, [*prefill, Node("decode", tpot_s=0.1, kv_due=0.5)])
    assert policy.loaded == "decode"
    assert policy.decide(2.0, [*prefill, Node("dead")]) == [RoleChange(0, "decode")]


def test_load_aware_in_the_other_direction_and_where_a_move_does_not_pay() -> None:
    policy = LoadAwareRoles(ttft_slo_s=1.0, tpot_slo_s=0.05, lend_periods=1)
    policy.decide(0.0, state(0.1, 1.2, p=3, d=2))
    assert policy.decide(1.0, state(0.1, 1.2, p=3, d=2)) == [RoleChange(1, "decode")]  # the shortest queue; the first node's is longer
    assert policy.where(1.0, REQUEST, Node(wait=0.0), Node("decode", wait=1.0)) == "source"
    dear = LoadAwareRoles(ttft_slo_s=1.0, tpot_slo_s=0.05, lend_periods=1, rebuild_s=40.0, payback_s=30.0)
    dear.decide(0.0, state(0.1, 1.2, p=3, d=2))
    assert dear.decide(1.0, state(0.1, 1.2, p=3, d=2)) == []  # (1.2 - 0.8) x 30 s is less than the 40 s of a rebuild
    last = LoadAwareRoles(ttft_slo_s=1.0, tpot_slo_s=0.05, lend_periods=1)
    last.decide(0.0, state(2.0, 0.3, p=2, d=1))
    assert last.decide(1.0, state(2.0, 0.3, p=2, d=1)) == []  # the only decode node stays
    overloaded = LoadAwareRoles(ttft_slo_s=1.0, tpot_slo_s=0.05, lend_periods=1)
    overloaded.decide(0.0, state(4.0, 1.1))
    assert overloaded.decide(1.0, state(4.0, 1.1)) == []  # there is nothing to lend


@given(st.floats(0.01, 5.0), st.floats(0.01, 5.0))
def test_load_aware_is_imbalanced_by_its_definition(prompts, tokens) -> None:
    policy = LoadAwareRoles(ttft_slo_s=1.0, tpot_slo_s=0.05)
    cluster = [Node("prefill", queued_s=prompts), Node("decode", kv_due=0.9 * tokens)]
    for now_s in (0.0, 1.0):
        policy.decide(now_s, cluster)
    ratio = math.log(prompts / tokens)
    if abs(abs(ratio) - math.log(1.5)) > 1e-9 and abs(max(prompts, tokens) - 0.7) > 1e-9:
        assert (policy.loaded != "") == (max(prompts, tokens) > 0.7 and abs(ratio) >= math.log(1.5))
        assert policy.loaded in ("", "prefill" if ratio > 0 else "decode")


def test_arrow_decides_as_worked_out_by_hand() -> None:
    policy = Arrow(ttft_slo_s=1.0, tpot_slo_s=0.05)
    assert policy.decide(0.0, state(0.9, 0.3)) == [RoleChange(2, "prefill", drain=False)]
    assert policy.decide(0.0, state(0.9, 0.6)) == []  # two decode nodes would be at 0.9
    assert policy.decide(0.0, state(0.1, 0.9, p=3, d=2)) == [RoleChange(1, "decode", drain=False)]
    assert policy.decide(0.0, state(0.9, 0.9)) == []  # both are in danger
    assert policy.decide(0.0, state(0.5, 0.5)) == []


def test_conditional_and_colocated_decide_as_worked_out_by_hand() -> None:
    policy = Conditional(local_tokens=512, queue_s=2.0)
    long, short = RequestView(0, 513, 9, 0.0), RequestView(0, 512, 9, 0.0)
    assert policy.where(0.0, long, Node(queued_s=1.9), Node("decode")) == "split"
    assert policy.where(0.0, short, Node(queued_s=0.0), Node("decode")) == "target"
    assert policy.where(0.0, long, Node(queued_s=2.0), Node("decode")) == "target"
    assert Colocated().begin("prefill") == Colocated().begin("decode") == "both"
    assert Static().begin("prefill") == "prefill"


def test_scheduled_roles_change_as_worked_out_by_hand() -> None:
    """No change before its time; the last node of a side waits for another; a changing node is waited for; a lost node is skipped."""
    plan = [(2.0, "d1", "prefill"), (4.0, "d0", "prefill"), (5.0, "d1", "decode"), (6.0, "p0", "prefill"), (7.0, "p1", "decode")]
    policy = Scheduled(changes=[{"at_s": at_s, "worker": worker, "role": role} for at_s, worker, role in reversed(plan)])

    def look(now_s: float, **roles: str) -> list[RoleChange]:
        return policy.decide(now_s, [Node(role, name=name) for name, role in roles.items()])

    assert look(1.9, p0="prefill", p1="prefill", d0="decode", d1="decode") == []
    assert look(2.0, p0="prefill", p1="prefill", d0="decode", d1="decode") == [RoleChange(3, "prefill")]
    assert look(4.5, p0="prefill", p1="prefill", d0="decode", d1="") == []  # d0 is the last decode node
    assert look(5.0, p0="prefill", p1="prefill", d0="decode", d1="") == []  # d1 is still changing
    assert look(5.1, p0="prefill", p1="prefill", d0="decode", d1="prefill") == [RoleChange(3, "decode")]
    assert look(5.2, p0="prefill", p1="prefill", d0="decode", d1="decode") == [RoleChange(2, "prefill")]
    assert look(6.0, p0="prefill", p1="prefill", d0="prefill", d1="decode") == []  # p0 has that role already
    assert look(7.0, p0="prefill", d0="prefill", d1="decode") == []  # p1 has died
    assert look(9.0, p0="prefill", p1="prefill", d0="prefill", d1="decode") == []
    with pytest.raises(ValueError, match="there is no node d7; the nodes are n"):
        Scheduled(changes=[{"at_s": 1.0, "worker": "d7", "role": "prefill"}]).decide(0.1, [Node()])
    with pytest.raises(ValueError, match="at_s, worker and role"):
        Scheduled(changes=[{"at_s": 1.0, "node": "d7", "role": "prefill"}])


@pytest.mark.parametrize(
    ("policy", "fields"),
    [
        (Static, {"period_s": 0.0}),
        (Conditional, {"queue_s": 0.0}),
        (Arrow, {"high": 0.0}),
        (LoadAwareRoles, {"leave_ratio": 1.6}),
        (LoadAwareRoles, {"lend_periods": 0}),
        (Hysteresis, {"enter": (4, 3)}),
        (Scheduled, {"changes": [{"at_s": 1.0, "worker": "d0", "role": "both"}]}),
        (Scheduled, {"changes": [{"at_s": -1.0, "worker": "d0", "role": "decode"}]}),
    ],
)
def test_impossible_fields_are_refused(policy, fields) -> None:
    with pytest.raises(ValueError, match="must"):
        policy(**fields)
