"""A real network between network namespaces drops every packet for a while. The processes notice only the silence."""

from __future__ import annotations

import secrets
import threading
from pathlib import Path

import pytest

from abkt.net.command import run as ip
from abkt.net.namespaces import Namespaces
from abkt.records import RequestRecord
from abkt.serve import LocalCluster, LocalClusterSpec
from tests.serve.test_engine import generate
from tests.serve.test_many_workers import prompts
from tests.serve.test_real_cluster import LINK, RAW, SLOW_SLO

WHY_NOT = Namespaces.why_not()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "permitted")]


@pytest.mark.parametrize("outage_s", [1.5, 6.0], ids=["shorter than the silence that is noticed", "longer"])
def test_requests_survive_a_network_outage_of_the_only_decode_worker(tiny_model: Path, tmp_path: Path, outage_s: float) -> None:
    key = tmp_path / "key"
    key.write_bytes(secrets.token_bytes(32))
    key.chmod(0o600)
    given = prompts(30, gap_s=0.2)
    with Namespaces(senders=2, lowest_bytes_per_s=LINK.bytes_per_s[0]) as network:
        device = ("-n", network.name("d0"), "link", "set", "eth0")
        timers: list[threading.Timer] = []

        def cut(record: RequestRecord) -> None:
            if not timers:
                ip("ip", *device, "down")
                timers.append(threading.Timer(outage_s, lambda: _mend(network)))
                timers[0].start()

        spec = LocalClusterSpec(tiny_model, prefill=2, pool_tokens=4096, key_file=str(key))
        with LocalCluster(spec, tmp_path, network) as cluster:
            run = cluster.run(given, RAW, LINK, SLOW_SLO, keep=cut)
        timers[0].join()
    assert run.outputs == {p.request_id: generate(tiny_model, list(p.tokens), p.osl) for p in given}


def _mend(network: Namespaces) -> None:
    """Bring the link up again; the neighbour entries were lost with it."""
    room = ("ip", "-n", network.name("d0"))
    ip(*room, "link", "set", "eth0", "up")
    for other in ("p0", "p1"):
        address, hardware = network.address(other), network.layout.hardware(other)
        ip(*room, "neighbour", "replace", address, "lladdr", hardware, "dev", "eth0", "nud", "permanent")
