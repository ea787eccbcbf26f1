from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.capacity import Capacity
from sim.clock import Clock
from sim.network.flows import Flow, Link, Network, fair_rates
from sim.network.link_faults import LinkFault, LinkFaults
from sim.timers import UNSET, Wake

rates = st.floats(0.1, 1e3)


@st.composite
def meshes(draw):
    links = draw(st.integers(1, 6))
    capacity = {link: draw(rates) for link in range(links)}
    paths = draw(st.lists(st.lists(st.integers(0, links - 1), min_size=1, max_size=3, unique=True), min_size=1, max_size=10))
    return paths, capacity


@pytest.mark.parametrize(
    ("paths", "capacity", "expected"),
    [
        (["a"], {"a": 6.0}, [6.0]),
        (["a", "a", "a"], {"a": 6.0}, [2.0, 2.0, 2.0]),
        (["a", "ab", "b"], {"a": 10.0, "b": 4.0}, [8.0, 2.0, 2.0]),  # link b fills first; the first flow gets the rest of link a
        (["ab", "a", "bc", "c"], {"a": 4.0, "b": 9.0, "c": 3.0}, [2.0, 2.0, 1.5, 1.5]),
        (["ac", "bc", "c"], {"a": 1.0, "b": 5.0, "c": 9.0}, [1.0, 4.0, 4.0]),
        (["a", "b"], {"a": math.inf, "b": 2.0}, [math.inf, 2.0]),
        (["ax", "bx", "cx", "dx"], {"a": 9.0, "b": 9.0, "c": 9.0, "d": 0.4, "x": 4.0}, [1.2, 1.2, 1.2, 0.4]),  # incast
    ],
)
def test_fair_rates_are_those_worked_out_by_hand(paths, capacity, expected) -> None:
    assert fair_rates(paths, capacity) == pytest.approx(expected)


@given(meshes())
def test_rates_are_max_min_fair(mesh) -> None:
    """The definition of max-min fairness: no link is overfull, and every flow has a full link on which no other flow is faster."""
    paths, capacity = mesh
    fair = fair_rates(paths, capacity)
    load = {link: sum(rate for rate, path in zip(fair, paths) if link in path) for link in capacity}
    assert all(load[link] <= capacity[link] * (1 + 1e-9) for link in capacity)
    for rate, path in zip(fair, paths):
        assert any(
            load[link] >= capacity[link] * (1 - 1e-9) and all(other <= rate * (1 + 1e-9) for other, p in zip(fair, paths) if link in p)
            for link in path
        )


@given(meshes(), st.integers(0, 9))
def test_a_flow_can_gain_only_at_the_cost_of_a_slower_one(mesh, at) -> None:
    paths, capacity = mesh
    fair = fair_rates(paths, capacity)
    at %= len(paths)
    greedy = fair_rates([*paths, *[[("cap", i)] for i in range(len(paths))]], {**capacity, **{("cap", i): r for i, r in enumerate(fair)}})
    assert greedy[: len(fair)] == pytest.approx(fair)  # solving twice changes nothing
    slack = [capacity[link] - sum(r for r, p in zip(fair, paths) if link in p and r <= fair[at] * (1 + 1e-9)) for link in paths[at]]
    assert min(slack) <= 1e-9 * max(capacity.values())  # nothing would be left for it even if all faster flows gave way


@pytest.mark.parametrize(
    ("paths", "levels", "capacity", "expected"),
    [
        (["a", "a"], [1, 0], {"a": 6.0}, [0.0, 6.0]),
        (["a", "a", "a"], [0, 1, 1], {"a": 6.0}, [6.0, 0.0, 0.0]),
        (["ab", "a", "a"], [0, 1, 1], {"a": 6.0, "b": 2.0}, [2.0, 2.0, 2.0]),  # link b limits the urgent flow; the others share the rest
        (["a", "ab", "b"], [0, 1, 2], {"a": 5.0, "b": 9.0}, [5.0, 0.0, 9.0]),  # a flow that gets nothing on a uses nothing of b
        (["a", "a"], [0, 1], {"a": math.inf}, [math.inf, math.inf]),
    ],
)
def test_urgent_flows_get_their_rates_first(paths, levels, capacity, expected) -> None:
    assert fair_rates(paths, capacity, levels) == pytest.approx(expected)


@given(meshes(), st.lists(st.integers(0, 2), min_size=10, max_size=10))
def test_each_level_is_max_min_fair_on_the_capacity_that_more_urgent_levels_leave(mesh, levels) -> None:
    paths, capacity = mesh
    levels = levels[: len(paths)]
    fair = fair_rates(paths, capacity, levels)
    for level in set(levels):
        before = {link: sum(r for r, p, of in zip(fair, paths, levels) if link in p and of < level) for link in capacity}
        upto = {link: sum(r for r, p, of in zip(fair, paths, levels) if link in p and of <= level) for link in capacity}
        assert all(upto[link] <= capacity[link] * (1 + 1e-9) for link in capacity)
        peers = [(rate, path) for rate, path, of in zip(fair, paths, levels) if of == level]
        for rate, path in peers:  # a link that this level fills, and on which no flow of this level is faster
            assert any(
                upto[link] >= capacity[link] * (1 - 1e-9)
                and all(r <= rate * (1 + 1e-9) + 1e-9 * capacity[link] for r, p in peers if link in p)
                for link in path
            )
            assert rate <= min(capacity[link] - before[link] for link in path) + 1e-9 * max(capacity.values())


@given(meshes(), st.data())
def test_less_urgent_flows_do_not_change_the_rates_of_urgent_ones(mesh, data) -> None:
    paths, capacity = mesh
    levels = [data.draw(st.integers(0, 2)) for _ in paths]
    urgent = [flow for flow, level in enumerate(levels) if level == 0]
    alone = fair_rates([paths[flow] for flow in urgent], capacity)
    together = fair_rates(paths, capacity, levels)
    assert [together[flow] for flow in urgent] == pytest.approx(alone, rel=1e-12)


class Sender:
    """One flow from start_s on, whose segments and end time are recorded."""

    def __init__(
        self, clock: Clock, network: Network, path, start_s: float, size: float, limit: float = math.inf, turns=(), level=0
    ) -> None:
        self.clock, self.network = clock, network
        self.path, self.start_s, self.size, self.limit, self.level = path, start_s, size, limit, level
        self.turns = list(turns)  # targets to move to, one for each time that `end` rings
        self.segments: list[tuple[float, float]] = []
        self.end_s = math.nan
        clock.process(self.run())

    def on_rate(self, passed: float, seconds: float) -> float:
        self.segments.append((passed, seconds))
        return self.size

    def run(self):
        yield Wake(self.clock).at(self.start_s)
        self.flow = Flow(self.clock, self.path, self.size, self.on_rate, self.limit, self.level)
        self.network.join(self.flow)
        yield self.flow.end
        self.segments.append(self.flow.finish(self.clock.now))
        while self.turns:
            self.size = self.turns.pop(0)
            self.flow.aim(self.size)
            yield self.flow.end
            self.segments.append(self.flow.finish(self.clock.now))
        self.network.leave(self.flow)
        self.end_s = self.clock.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def network(clock) -> Network:
    return Network(clock)


def test_rates_change_when_flows_join_and_leave(clock, network) -> None:
    link = (network.link("nic", Capacity.constant(10.0)),)
    first, second = Sender(clock, network, link, 0.0, 100.0), Sender(clock, network, link, 4.0, 20.0)
    clock.run()
    assert (first.end_s, second.end_s) == (pytest.approx(12.0), pytest.approx(8.0))
    assert first.segments == [(0.0, 0.0), (40.0, 4.0), (pytest.approx(20.0), 4.0), (pytest.approx(40.0), pytest.approx(4.0))]


def test_a_flows_target_may_move(clock, network) -> None:
    link = (network.link("nic", Capacity.constant(10.0)),)
    longer = Sender(clock, network, link, 0.0, 30.0, turns=[70.0])
    clock.run()
    assert longer.end_s == pytest.approx(7.0)
    assert sum(b for b, _ in longer.segments) == 70.0

    def shorten():
        yield Wake(clock).at(9.0)
        shorter.flow.settle(clock.now)
        shorter.flow.aim(25.0)

    shorter = Sender(clock, network, link, 8.0, 50.0)  # 10 bytes have passed when it is cut to 25
    clock.process(shorten())
    clock.run()
    assert shorter.end_s == pytest.approx(10.5)


def test_a_target_below_the_bytes_that_passed_is_reached_at_once(clock, network) -> None:
    sender = Sender(clock, network, (network.link("nic", Capacity.constant(10.0)),), 0.0, 50.0)

    def shorten():
        yield Wake(clock).at(3.0)
        sender.flow.settle(clock.now)
        sender.flow.aim(5.0)

    clock.process(shorten())
    clock.run()
    assert sender.end_s == 3.0
    assert sender.flow.sent_bytes == 30.0


def test_unlimited_links_take_no_time(clock, network) -> None:
    free = Sender(clock, network, (network.link("nic", Capacity.constant(math.inf)),), 1.5, 1e12)
    clock.run()
    assert free.end_s == 1.5
    assert free.flow.sent_bytes == 1e12


def test_a_less_urgent_flow_waits_and_then_continues(clock, network) -> None:
    link = (network.link("nic", Capacity.constant(10.0)),)
    behind = Sender(clock, network, link, 0.0, 50.0, level=1)
    urgent = Sender(clock, network, link, 2.0, 30.0)
    clock.run()
    assert (urgent.end_s, behind.end_s) == (pytest.approx(5.0), pytest.approx(8.0))
    assert behind.segments == [(0.0, 0.0), (20.0, 2.0), (0.0, pytest.approx(3.0)), (pytest.approx(30.0), pytest.approx(3.0))]


def test_incast_shares_the_receivers_link_equally(clock, network) -> None:
    """Eight senders of 10 bytes/s share a link of 20 bytes/s. Each gets 2.5 until the two short ones are done, then a sixth of the link."""
    target = network.link("target", Capacity.constant(20.0))
    sizes = [5.0, 5.0, *[20.0] * 6]
    senders = [Sender(clock, network, (network.link(f"s{i}", Capacity.constant(10.0)), target), 0.0, size) for i, size in enumerate(sizes)]
    clock.run()
    assert [s.end_s for s in senders] == pytest.approx([2.0, 2.0, *[2.0 + 15 / (20 / 6)] * 6])


def test_link_faults_stop_and_slow_the_flows_over_the_link(clock, network) -> None:
    link = network.link("nic", Capacity((0.0, 6.0), (10.0, 20.0)))
    LinkFaults(network, {"nic": link}, [LinkFault("nic", 1.0, 3.0, 0.0), LinkFault("nic", 4.0, 7.0, 0.5), LinkFault("nic", 4.0, 5.0, 0.5)])
    sender = Sender(clock, network, (link,), 0.0, 57.5)
    clock.run()
    # 10 until 1, 0 until 3, 10 until 4, 10/4 until 5, 10/2 until 6, 20/2 until 7, then 20
    assert sender.segments == [pytest.approx(s) for s in ((0, 0), (10, 1), (0, 2), (10, 1), (2.5, 1), (5, 1), (10, 1), (20, 1))]
    assert sender.end_s == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("nic", 2.0, 2.0, 0.0), "must end after it starts"),
        (("nic", -1.0, 2.0, 0.0), "start_s is -1; it must be at least 0"),
        (("nic", 0.0, 2.0, 1.5), "share is 1.5"),
        (("nic", 0.0, math.inf, 0.0), "for ever"),
    ],
)
def test_an_impossible_link_fault_is_refused(fault, message) -> None:
    with pytest.raises(ValueError, match=message):
        LinkFault(*fault)


def test_a_fault_of_an_unknown_link_is_refused(network) -> None:
    with pytest.raises(ValueError, match="no link nic; there are a, b"):
        LinkFaults(network, {"b": None, "a": None}, [LinkFault("nic", 0.0, 1.0, 0.0)])


@st.composite
def schedules(draw):
    gaps = draw(st.lists(st.floats(0.1, 5), min_size=0, max_size=4))
    starts = [0.0]
    for gap in gaps:
        starts.append(starts[-1] + gap)
    period = draw(st.one_of(st.just(math.inf), st.floats(0.1, 5).map(lambda tail: starts[-1] + tail)))
    return Capacity(tuple(starts), tuple(draw(rates) for _ in starts), period)


@given(schedules(), st.floats(0, 20), st.floats(1, 300), st.one_of(st.just(math.inf), rates))
def test_a_lone_flow_ends_when_the_integral_of_its_links_schedule_says(capacity, start_s, size, limit) -> None:
    """The schedule's own integral gives the end of the event-driven flow. A lower rate limit acts as a second link."""
    clock = Clock()
    network = Network(clock)
    sender = Sender(clock, network, (network.link("nic", capacity),), start_s, size, limit)
    clock.run()
    slower = Capacity(capacity.starts_s, tuple(min(b, limit) for b in capacity.bytes_per_s), capacity.period_s)
    assert sender.end_s == pytest.approx(slower.finish_s(start_s, size), rel=1e-6)
    assert sum(b for b, _ in sender.segments) == pytest.approx(size)


class Checked(Network):
    """Checks after every change that all rates of the whole network are fair, although only connected flows were solved again."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.links: list[Link] = []

    def link(self, name: str, capacity: Capacity) -> Link:
        self.links.append(super().link(name, capacity))
        return self.links[-1]

    def _solve(self, changed, alone=None) -> None:
        super()._solve(changed, alone)
        flows = list({flow: None for link in self.links for flow in link.flows})
        capacity = {link: link.bytes_per_s for link in self.links}
        caps = {flow: flow.limit_bytes_per_s for flow in flows}
        expected = fair_rates([(*flow.path, flow) for flow in flows], {**capacity, **caps}, [flow.level for flow in flows])
        assert [flow.rate for flow in flows] == pytest.approx(expected, rel=1e-9)
        assert all(flow.end.number == UNSET for flow in flows if flow.rate == 0)  # no event is due while no bytes pass


@settings(max_examples=60)
@given(
    st.lists(schedules(), min_size=2, max_size=5),
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0, 10), st.floats(1, 200), st.floats(1, 1e3), st.integers(0, 2)),
        min_size=1,
        max_size=12,
    ),
    st.lists(st.tuples(st.integers(0, 4), st.floats(0, 10), st.floats(0.1, 5), st.sampled_from([0.0, 0.25])), max_size=3),
)
def test_solving_only_the_connected_flows_gives_the_rates_of_the_whole_network(capacities, flows, faults) -> None:
    clock = Clock()
    network = Checked(clock)
    links = [network.link(str(i), capacity) for i, capacity in enumerate(capacities)]
    senders = []
    for a, b, start_s, size, limit, level in flows:
        path = tuple(dict.fromkeys((links[a % len(links)], links[b % len(links)])))
        senders.append(Sender(clock, network, path, start_s, size, limit, level=level))
    LinkFaults(
        network, {link.name: link for link in links}, [LinkFault(str(a % len(links)), at, at + long, left) for a, at, long, left in faults]
    )
    clock.run()
    assert all(link.share == 1.0 for link in links)
    for sender, (*_, start_s, size, limit, _) in zip(senders, flows):
        assert sum(b for b, _ in sender.segments) == pytest.approx(size)
        assert sum(s for _, s in sender.segments) == pytest.approx(sender.end_s - start_s, abs=1e-9)
        assert sender.end_s - start_s >= size / limit * (1 - 1e-9)


@given(st.lists(st.floats(1, 1000), min_size=1, max_size=8), rates)
def test_flows_on_one_link_share_it_as_processor_sharing(sizes, capacity) -> None:
    """All flows start together. When the k-th shortest ends, each longer flow has sent as many bytes as it."""
    clock = Clock()
    network = Network(clock)
    link = (network.link("nic", Capacity.constant(capacity)),)
    senders = [Sender(clock, network, link, 0.0, size) for size in sizes]
    clock.run()
    for sender in senders:
        assert sender.end_s == pytest.approx(sum(min(other, sender.size) for other in sizes) / capacity)
