from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abkt.capacity import Capacity
from abkt.policy.bitrate.fixed import Raw
from abkt.policy.routing.round_robin import RoundRobin
from sim.clock import Clock
from sim.cluster import Simulation
from sim.network.background import Background, FlowSizes, Traffic, read_flow_sizes
from sim.network.flows import Network
from sim.timers import Wake
from sim.workload.requests import Request
from tests.sim.test_cluster import SLOS, cluster, run

PUBLISHED = Path(__file__).parents[2] / ".." / "shared" / "data" / "traces"
SIZES = FlowSizes((0.0, 100.0, 1000.0), (0.0, 0.5, 1.0))


def test_sizes_are_drawn_by_interpolating_the_distribution() -> None:
    assert SIZES.mean_bytes == 0.5 * 50 + 0.5 * 550
    assert [SIZES.draw(share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)] == [0.0, 50.0, 100.0, 550.0, 1000.0]


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), min_size=1, max_size=8))
def test_drawn_sizes_rise_with_the_share_and_have_the_distributions_mean(points) -> None:
    sizes = (0.0, *sorted(size for size, _ in points), 1e6)
    shares = (0.0, *sorted(share for _, share in points), 1.0)
    of = FlowSizes(sizes, shares)
    grid = (np.arange(4_000) + 0.5) / 4_000
    drawn = [of.draw(float(share)) for share in grid]
    assert drawn == sorted(drawn)
    assert np.mean(drawn) == pytest.approx(of.mean_bytes, rel=1e-3, abs=1e6 / 2_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0\n10 x\n", "line 2: '10 x' is not a size"),
        ("0 0\n10\n", "line 2: '10' is not a size"),
        ("0 0\n10 50\n", "go from 0 to 0.5"),
        ("0 0\n10 50\n5 100\n", "do not fall"),
        ("", "two points"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path, text, message) -> None:
    path = tmp_path / "sizes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_flow_sizes(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"none\.txt cannot be read"):
        read_flow_sizes(tmp_path / "none.txt")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published files are not here")
@pytest.mark.parametrize(
    ("name", "mean_bytes"),
    [("WebSearch_distribution", 1.711e6), ("AliStorage2019", 40.9e3), ("FbHdp_distribution", 120.4e3), ("GoogleRPC2008", 2892)],
)
def test_the_published_distributions_have_their_means(name, mean_bytes) -> None:
    assert read_flow_sizes(PUBLISHED / f"flowsize_{name}.txt").mean_bytes == pytest.approx(mean_bytes, rel=0.001)


@pytest.mark.parametrize("burst", [1, 8])
def test_background_traffic_has_the_configured_load(burst) -> None:
    """The load is the bytes that passed, divided by the bytes that the link could carry. The run is long enough for the mean to settle."""
    clock = Clock()
    network = Network(clock)
    links = {name: network.link(name, Capacity.constant(rate)) for name, rate in (("a", 1e5), ("b", 3e5))}
    Wake(clock).at(60.0)  # the run
    traffic = Traffic(network, links, Background(SIZES, 0.4, (("a", "b"),), burst, seed=5), lambda: clock.now < 60)
    clock.run()
    assert traffic.bytes / (60 * 1e5) == pytest.approx(0.4, rel=0.1)
    assert traffic.bytes / traffic.flows == pytest.approx(SIZES.mean_bytes, rel=0.1)


def test_background_traffic_delays_transfers_by_the_same_time_in_every_run(profile) -> None:
    requests = [Request(i, 0.1 * i, 100, 4) for i in range(40)]
    of = cluster(profile)
    quiet = run(of, requests)
    busy = replace(of, background=Background(SIZES, 0.5, (("d0",),), seed=1))
    first, second = run(busy, requests, debug=True), run(busy, requests)
    assert repr(first.requests) == repr(second.requests)
    mean = [sum(t.finish_s - t.start_s for t in result.transfers) / 40 for result in (quiet, first)]
    assert mean[1] > 1.2 * mean[0]
    assert [r.wire_bytes for r in first.requests] == [r.wire_bytes for r in quiet.requests]


def test_a_stuck_run_is_reported_despite_background_traffic(profile) -> None:
    of = replace(cluster(profile), background=Background(SIZES, 0.5, (("d0",),)))
    simulation = Simulation(of, [Request(0, 0.0, 100, 9)], Raw, RoundRobin(), SLOS)
    memory = simulation.nodes.all[0].memory
    memory.reserve(memory.blocks)  # which is never released
    with pytest.raises(RuntimeError, match="no event is left"):
        simulation.run()


def test_a_path_over_an_unknown_link_is_refused(profile) -> None:
    of = cluster(profile)
    with pytest.raises(ValueError, match="no link x; there are d0, p0"):
        run(replace(of, background=Background(SIZES, 0.5, (("x",),))), [Request(0, 0.0, 9, 9)])
    with pytest.raises(ValueError, match="has a limit"):
        run(replace(cluster(profile, rate=math.inf), background=Background(SIZES, 0.5, (("d0",),))), [Request(0, 0.0, 9, 9)])
    for fields in ((0.0, (("a",),)), (0.5, ((),)), (0.5, (("a",),), 0)):
        with pytest.raises(ValueError, match=r"background traffic needs|it must be"):
            Background(SIZES, *fields)
