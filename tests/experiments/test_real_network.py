"""The network of a replay, chosen by configuration and permission. Only the slow tests set one up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from abkt.net.namespaces import FOLDER, Namespaces
from abkt.net.relay import TUN
from experiments.lib.network import NetworkConfig
from experiments.lib.real_network import real_network
from experiments.lib.results import read_records

WHY_NOT = Namespaces.why_not()
permitted = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "permitted")
FEW = ["workload.scaling.requests=4", "workload.scaling.isl_max=600", "workload.scaling.osl_max=8", "workload.scaling.osl_min=4"]


def network(gbps: float = 0.01, **conditions: float) -> NetworkConfig:
    return NetworkConfig(gbps=gbps, share=(1.0,), starts_s=(0.0,), period_s=float("inf"), **conditions)  # type: ignore[arg-type]


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Namespaces, "why_not", staticmethod(lambda: "Operation not permitted"))


@pytest.mark.usefixtures("forbidden")
def test_without_permission_the_socket_is_paced_and_the_summary_gives_the_reason() -> None:
    with real_network(network(), "auto", seed=0) as made:
        assert (made.pacing, made.namespaces, made.key_file) == ("socket", None, "")
        assert made.facts == {"why_not_namespaces": "Operation not permitted"}
    with real_network(network(gbps=float("inf")), "auto", seed=0) as made:
        assert (made.pacing, made.facts) == ("userspace", {})


@pytest.mark.usefixtures("forbidden")
@pytest.mark.parametrize(
    ("conditions", "pacing", "said"),
    [
        ({"delay_s": 0.01}, "auto", "network.delay_s=0.01 needs network namespaces: Operation not permitted"),
        ({"loss": 0.01, "senders": 2}, "socket", "network.loss=0.01, network.senders=2 needs network namespaces: pacing is socket"),
        ({}, "tbf", "pacing=tbf needs network namespaces: Operation not permitted"),
        ({}, "netem", "pacing is netem; it must be one of auto, tbf, socket, userspace"),
    ],
)
def test_an_unavailable_codec_that_is_named_is_refused(conditions: dict[str, float], pacing: str, said: str) -> None:
    with pytest.raises(ValueError, match=said), real_network(network(**conditions), pacing, seed=0):
        pass


@pytest.mark.slow
@permitted
def test_a_namespaced_network_has_its_own_key_and_removes_it() -> None:
    before = set(FOLDER.iterdir()) if FOLDER.exists() else set()
    with real_network(network(), "auto", seed=0) as made:
        assert made.pacing == "tbf"
        key = Path(made.key_file)
        assert (key.stat().st_size, key.stat().st_mode & 0o777) == (32, 0o600)
    assert not key.exists()
    assert set(FOLDER.iterdir()) == before


def replay(out: Path, *arguments: str) -> dict[str, object]:
    command = [sys.executable, "-m", "experiments.cli", "replay", *FEW, *arguments, f"out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads((out / "summary.json").read_text()))


@pytest.mark.slow
@permitted
@pytest.mark.parametrize(
    ("arguments", "pacing", "nodes"),
    [
        (["network=wan_oscillating", "network.starts_s=[0,0.5]", "network.period_s=1"], "tbf", {"p0"}),
        (["network=incast", "network.senders=2", "network.gbps=0.02"], "tbf", {"p0", "p1"}),
        pytest.param(["network=edge"], "tbf", {"p0"}, marks=pytest.mark.skipif(not os.path.exists(TUN), reason=f"no {TUN}")),
        (["network=wan_drop", "pacing=socket"], "socket", {"p0"}),
        (["network=10m", "pacing=userspace"], "userspace", {"p0"}),
        (["network=unlimited"], "none", {"p0"}),
    ],
    ids=["oscillating", "incast", "edge", "socket", "userspace", "unlimited"],
)
def test_a_replay_over_each_kind_of_network(tiny_model: Path, tmp_path: Path, arguments: list[str], pacing: str, nodes: set[str]) -> None:
    before = set(FOLDER.iterdir()) if FOLDER.exists() else set()
    summary = replay(tmp_path / "out", f"model_folder={tiny_model}", "bitrate=int8", *arguments)
    requests, transfers = (read_records(tmp_path / "out" / f"{name}.parquet") for name in ("requests", "transfers"))
    assert list(requests.outcome) == ["completed"] * 4
    assert set(requests.prefill_node) == set(transfers.source) == nodes
    assert set(transfers.pacing) == {pacing}
    facts = summary["network"]
    assert isinstance(facts, dict)
    assert facts["pacing"] == pacing
    if pacing == "tbf":
        assert facts["congestion_control"]
        assert facts["senders"] == len(nodes)
    if "network=edge" in arguments:
        assert facts["relay"]["passed"] > 0
        assert (requests.wire_exposed_s >= 3 * 0.03).all()  # the offer's way, the grant's, and the last byte's
        assert requests.cost_usd.sum() == pytest.approx(requests.wire_bytes.sum() * 0.09e-9)
    if "network=wan_oscillating" in arguments:
        assert facts["changes"] >= 1
    assert (set(FOLDER.iterdir()) if FOLDER.exists() else set()) == before
