"""A real cluster of one prefill and one decode worker: two processes, real KV, loopback TCP. No absolute time is asserted."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest

from abkt.capacity import Capacity
from abkt.policy.view import Curve
from abkt.profile.roofline import GpuSpec, roofline
from abkt.profile.schema import RateCurve
from abkt.records import SLO, STAGES, RequestRecord
from abkt.serve import LocalCluster, LocalClusterSpec
from abkt.serve.errors import ClusterError, WorkerDied
from abkt.serve.frontend.prompt import Prompt
from tests.policy.every import configs
from tests.serve.test_engine import generate

UNLIMITED = Capacity.constant(math.inf)
LINK = Capacity.constant(8e6)
RAW = {"_target_": "abkt.policy.bitrate.fixed.Raw"}
LOSSLESS = {"_target_": "abkt.policy.bitrate.lossless.Lossless"}
INT8 = {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": 8}
EMBEDDED = {
    "_target_": "abkt.policy.bitrate.embedded.Embedded",
    "link": {"_target_": "abkt.policy.bandwidth.Bandwidth", "initial_bytes_per_s": 8e6},
}
SLOW_SLO = SLO(ttft_s=5.0, tpot_s=1.0)


def prompts(lengths: tuple[int, ...] = (37, 200, 500, 64, 16), osl: int = 8, gap_s: float = 0.05) -> list[Prompt]:
    return [Prompt(i, gap_s * i, tuple((7 * i + 3 * j) % 2048 for j in range(n)), osl) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("bitrate", [RAW, LOSSLESS], ids=["raw", "lossless"])
def test_lossless_transfers_give_the_tokens_of_a_single_process(cluster: LocalCluster, bitrate: dict[str, object]) -> None:
    run = cluster.run(prompts(), bitrate, UNLIMITED, SLOW_SLO)
    assert run.outputs == {p.request_id: generate(cluster.spec.model_folder, list(p.tokens), p.osl) for p in prompts()}


@pytest.mark.parametrize("bitrate", [RAW, LOSSLESS, INT8, EMBEDDED], ids=["raw", "lossless", "int8", "embedded"])
def test_the_times_of_a_record_add_up(cluster: LocalCluster, bitrate: dict[str, object]) -> None:
    run = cluster.run(prompts(), bitrate, LINK, SLOW_SLO)
    assert [r.outcome for r in run.requests] == ["completed"] * 5
    assert {t.request_id for t in run.transfers} == {r.request_id for r in run.requests}
    for r in run.requests:
        assert sum(getattr(r, f"{stage}_exposed_s") for stage in STAGES) == pytest.approx(r.e2e_s, abs=1e-9)
        assert all(getattr(r, f"{stage}_exposed_s") >= 0 for stage in STAGES)
        assert r.arrival_s <= r.prefill_token_s <= r.decode_token_s <= r.finish_s
        assert r.wire_exposed_s >= r.wire_bytes / LINK.bytes_per_s[0] * 0.9  # the link was paced
        assert len(run.outputs[r.request_id]) == r.osl
    raw_share = sum(r.wire_bytes for r in run.requests) / sum(r.raw_bytes for r in run.requests)
    if bitrate is RAW:
        assert raw_share > 1
    elif bitrate is LOSSLESS:
        assert raw_share < 1  # of float32, a little
        assert {t.mode for t in run.transfers} == {"lossless"}
    if bitrate in (RAW, LOSSLESS):
        assert all(r.distortion_start == 0 for r in run.requests)
    else:
        assert raw_share < 0.6  # fp32 KV, so 8 bits are a quarter, and short prompts are mostly edges at full precision
        assert all(0 < r.distortion_start < 1e-3 for r in run.requests if r.isl > 100 and bitrate is INT8)


LEARNING = {name: configs(8e6)[name] for name in ("cachegen", "kvserve", "state_machine", "fleet", "lynx_off", "oracle_bandwidth")}


@pytest.mark.parametrize("name", LEARNING)
def test_policies_with_a_state_run_on_real_workers(cluster: LocalCluster, name: str) -> None:
    run = cluster.run(prompts(lengths=(200, 500, 64), gap_s=0.0), LEARNING[name], LINK, SLOW_SLO)
    assert [r.outcome for r in run.requests] == ["completed"] * 3
    assert all(t.price > 0 for t in run.transfers)


def test_a_policy_whose_codec_the_profile_lacks_is_refused_before_anything_runs(cluster: LocalCluster) -> None:
    gpu = GpuSpec("none", flops=1e12, memory_bytes_per_s=1e10, memory_bytes=1e10)
    curve = RateCurve(64, Curve((0.1, 0.5), (1.0, 0.01), (0.0, 8.0)), Curve((0.1, 0.5), (1.0, 0.01), (0.0, 8.0)))
    with pytest.raises(ValueError, match="encode/lossless"):
        cluster.run(prompts(), LOSSLESS, UNLIMITED, SLOW_SLO, roofline(gpu, cluster.model, (curve,)))  # none for float32


def test_memory_for_one_request_at_a_time_delays_requests_but_loses_none(cluster: LocalCluster) -> None:
    run = cluster.run(prompts(lengths=(600, 600, 600), gap_s=0.0), INT8, UNLIMITED, SLOW_SLO)
    assert [r.outcome for r in run.requests] == ["completed"] * 3


def test_a_request_that_can_never_fit_is_rejected_with_its_reason(cluster: LocalCluster) -> None:
    kept: list[RequestRecord] = []
    run = cluster.run(prompts(lengths=(1020, 64)), RAW, UNLIMITED, SLOW_SLO, keep=kept.append)
    assert [(r.outcome, bool(r.reason)) for r in run.requests] == [("rejected", True), ("completed", False)]
    assert len(kept) == 2


def test_a_dead_worker_is_named_and_the_others_end(tiny_model: Path, tmp_path: Path) -> None:
    kept: list[RequestRecord] = []
    with LocalCluster(LocalClusterSpec(tiny_model, pool_tokens=1024), tmp_path) as cluster:
        pids = {name: worker.process.pid for name, worker in cluster.workers.states.items()}

        def kill_after_first(record: RequestRecord) -> None:
            kept.append(record)
            os.kill(pids["d0"], signal.SIGKILL)

        with pytest.raises(WorkerDied, match="worker d0 ended"):
            cluster.run(prompts(gap_s=0.5), RAW, UNLIMITED, SLOW_SLO, keep=kill_after_first)
        with pytest.raises(ClusterError, match="the last decode worker died in an earlier run; start a new cluster"):
            cluster.run(prompts(), RAW, UNLIMITED, SLOW_SLO)
    assert len(kept) == 1
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_cannot_load_its_model_is_named(tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((tiny_model / "config.json").read_text())
    with pytest.raises(WorkerDied, match=r"worker [pd]0 ended"), LocalCluster(LocalClusterSpec(broken), tmp_path):
        pass


def test_a_key_that_cannot_be_used_is_refused_before_anything_starts(tiny_model: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    key.chmod(0o644)
    with pytest.raises(ValueError, match="is open to every user"):
        LocalCluster(LocalClusterSpec(tiny_model, key_file=str(key)), tmp_path)
    with pytest.raises(ValueError, match="encryption needs a key"):
        LocalCluster(LocalClusterSpec(tiny_model, encrypt=True), tmp_path)


def test_an_unknown_transport_or_one_that_the_kernel_cannot_pace_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="transport is 'rdma'; it must be one of tcp, unix, shm"):
        LocalCluster(LocalClusterSpec(tiny_model, transport="rdma"), tmp_path)
    with pytest.raises(ValueError, match="transport shm does not go with pacing=socket, which is TCP's; give pacing=userspace"):
        LocalCluster(LocalClusterSpec(tiny_model, transport="shm"), tmp_path, pacing="socket")
