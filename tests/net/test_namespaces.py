"""Real namespaces and sockets: rates, delays and losses are as configured, and nothing is left behind. Only where permitted."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from abkt.capacity import Capacity
from abkt.net.bucket import payload_share
from abkt.net.command import NetworkError
from abkt.net.namespaces import FOLDER, Namespaces
from abkt.net.relay import TUN
from abkt.net.schedule import ScheduleFollower

WHY_NOT = Namespaces.why_not()
TRAFFIC = Path(__file__).with_name("traffic.py")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "permitted")]
relayed = pytest.mark.skipif(not os.path.exists(TUN), reason=f"no {TUN}")


def start(net: Namespaces, node: str, *what: object) -> subprocess.Popen[str]:
    command = [*net.command(node), sys.executable, str(TRAFFIC), *map(str, what)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def talk(net: Namespaces, there: str, here: str, amount: float, during: Callable[[], object] = lambda: None) -> tuple[str, str]:
    """The output of a process in d0 and of one in p0."""
    with start(net, "d0", there, net.address("d0")) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        with start(net, "p0", here, net.address("d0"), amount) as client:
            during()
            said = client.communicate(timeout=60)[0]
        return server.communicate(timeout=60)[0], said


def goodput(rows: list[tuple[float, int]], from_s: float, until_s: float) -> float:
    """Bytes a second between two times."""
    inside = [row for row in rows if from_s <= row[0] <= until_s]
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def test_a_socket_gets_the_shaped_rate() -> None:
    with Namespaces(lowest_bytes_per_s=1.25e6) as net:
        net.shape(1.25e6)
        rows = json.loads(talk(net, "sink", "pump", 3.0)[0])
    assert goodput(rows, rows[0][0] + 0.3, rows[-1][0]) == pytest.approx(1.25e6 * payload_share(1500), rel=0.1)


def test_a_rate_changes_while_bytes_flow_and_comes_back() -> None:
    """100 to 2 Mbit/s: a large segment that is queued when the burst shrinks must not block the queue."""
    capacity = Capacity((0.0, 1.5, 4.5), (12.5e6, 0.25e6, 12.5e6))
    with Namespaces(lowest_bytes_per_s=0.25e6) as net:
        origin_s = time.monotonic()
        with ScheduleFollower(capacity, net.shape, origin_s) as follower:
            rows = json.loads(talk(net, "sink", "pump", 6.0)[0])
    share = payload_share(1500)
    assert follower.changes == 2
    assert follower.late_s < 0.5
    assert goodput(rows, origin_s + 0.7, origin_s + 1.5) == pytest.approx(12.5e6 * share, rel=0.1)
    assert goodput(rows, origin_s + 2.0, origin_s + 4.5) == pytest.approx(0.25e6 * share, rel=0.1)
    assert goodput(rows, origin_s + 5.2, rows[-1][0]) == pytest.approx(12.5e6 * share, rel=0.1)


def test_a_rate_below_the_lowest_is_refused() -> None:
    with Namespaces(lowest_bytes_per_s=1e6) as net, pytest.raises(ValueError, match="below the lowest_bytes_per_s=1e"):
        net.shape(0.5e6)


@relayed
@pytest.mark.parametrize("delay_s", [0.01, 0.04])
def test_a_round_trip_takes_both_delays(delay_s: float) -> None:
    with Namespaces(delay_s=delay_s) as net:
        trips = json.loads(talk(net, "echo", "ping", 30)[1])
    assert min(trips) >= 2 * delay_s
    assert statistics.median(trips) == pytest.approx(2 * delay_s, abs=0.003)


@relayed
def test_a_relayed_link_is_shaped_too() -> None:
    """200 Mbit/s with 10 ms of delay; the relay must keep up."""
    with Namespaces(delay_s=0.01, lowest_bytes_per_s=25e6) as net:
        net.shape(25e6)
        rows = json.loads(talk(net, "sink", "pump", 4.0)[0])
    assert goodput(rows, rows[0][0] + 1.0, rows[-1][0]) == pytest.approx(25e6 * payload_share(1500), rel=0.1)


@relayed
def test_the_share_of_lost_packets() -> None:
    sent = 10_000
    with Namespaces(loss=0.01, seed=3) as net:
        came = int(talk(net, "count", "spray", sent)[0])
        facts = net.facts()
    assert sent - came == pytest.approx(100, abs=45)  # more than four standard deviations
    assert isinstance(facts["relay"], dict)
    assert facts["relay"]["lost"] >= sent - came


def shares(net: Namespaces, receivers: dict[str, list[str]], seconds: float = 4.0) -> dict[str, list[float]]:
    """Bytes per second from each sender of each receiver, all at once."""
    servers = {}
    for node, senders in receivers.items():
        code = (
            f"import sys; sys.path.insert(0, {str(TRAFFIC.parent)!r}); import traffic; traffic.many({net.address(node)!r}, {len(senders)})"
        )
        servers[node] = subprocess.Popen([*net.command(node), sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    for server in servers.values():
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
    pumps = [start(net, sender, "pump", net.address(node), seconds) for node, senders in receivers.items() for sender in senders]
    found = {node: json.loads(server.communicate(timeout=60)[0]) for node, server in servers.items()}
    for pump in pumps:
        with pump:
            pump.wait(timeout=10)
    return found


def test_four_senders_share_the_receivers_link() -> None:
    with Namespaces(senders=4, lowest_bytes_per_s=2.5e6) as net:
        net.shape(2.5e6)
        found = shares(net, {"d0": ["p0", "p1", "p2", "p3"]})["d0"]
    assert sum(found) == pytest.approx(2.5e6 * payload_share(1500), rel=0.1)
    assert min(found) > 0


@pytest.mark.parametrize(
    ("flows", "whole"),
    [
        ({"d0": ["p0"], "d1": ["p1"]}, [["d0"], ["d1"]]),  # separate links
        ({"d0": ["p0"], "d1": ["p0"]}, [["d0", "d1"]]),  # the sender's link is shared
        ({"p0": ["p1", "d0"], "d1": ["d0"]}, [["p0"]]),  # roles have changed: the receiver is now p0
    ],
    ids=["apart", "one sender", "turned around"],
)
def test_several_receivers_have_a_link_each(flows: dict[str, list[str]], whole: list[list[str]]) -> None:
    """whole: groups of receivers whose flows together get the rate of one link."""
    with Namespaces(senders=2, receivers=2, lowest_bytes_per_s=2.5e6) as net:
        net.shape(2.5e6)
        found = shares(net, flows)
    for together in whole:
        assert sum(sum(found[node]) for node in together) == pytest.approx(2.5e6 * payload_share(1500), rel=0.15)


def names() -> set[str]:
    return {path.name for path in FOLDER.iterdir()} if FOLDER.exists() else set()


def ours() -> set[str]:
    """The namespaces of this process: others may run tests at the same time."""
    return {name for name in names() if f"-{os.getpid()}-" in name}


def devices() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def host() -> tuple[object, ...]:
    """The host state that a run must not change: this process's namespaces, and all interfaces, routes and forwarding."""
    texts = [Path("/proc", name).read_text() for name in ("net/route", "sys/net/ipv4/ip_forward", "sys/net/ipv6/conf/all/disable_ipv6")]
    return ours(), devices(), *texts


def break_inside(**options: float) -> None:
    before = host()
    with Namespaces(**options):  # type: ignore[arg-type]
        assert len(ours()) > len(before[0])  # type: ignore[arg-type]
        assert host()[1:] == before[1:]
        raise RuntimeError("in the middle")


@pytest.mark.parametrize("options", [{}, {"senders": 3, "receivers": 2}, {"delay_s": 0.01}, {"senders": 2, "loss": 0.1}], ids=str)
def test_nothing_is_left_behind_and_the_host_is_unchanged(options: dict[str, float]) -> None:
    before = host()
    with pytest.raises(RuntimeError, match="in the middle"):
        break_inside(**options)
    assert host() == before


def test_a_network_that_fails_to_start_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abkt.net.namespaces.TokenBucket.of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), Namespaces(lowest_bytes_per_s=1.0):
        pass
    monkeypatch.setattr("abkt.net.relay_process.TUN", "/nowhere/tun")
    with pytest.raises(NetworkError, match="/nowhere/tun, which this machine does not have"), Namespaces(delay_s=0.01):
        pass
    assert not ours()


def test_the_namespaces_of_a_killed_run_are_removed_when_the_next_one_starts() -> None:
    """Its relay has ended by itself before."""
    options = "delay_s=0.001" if os.path.exists(TUN) else ""
    code = (
        f"import time; from abkt.net.namespaces import Namespaces\nwith Namespaces({options}):\n  print('up', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "up\n"
        own = {name for name in names() if f"-{victim.pid}-" in name}
        inside = [pid for name in own for pid in subprocess.check_output(["ip", "netns", "pids", name], text=True).split()]
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert len(own) == 2
    until_s = time.monotonic() + 10
    while any(Path("/proc", pid).exists() for pid in inside):
        assert time.monotonic() < until_s
        time.sleep(0.05)
    with Namespaces():
        assert not own & names()
