"""Which runs a calibration makes, on a fake cluster."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from abkt.codec.divergence import DivergenceLaw
from abkt.measure.cluster import calibrate, handovers, steps
from abkt.measure.plan import COUNTS, FIRST, LOAD, Speed, arrivals, plan
from abkt.policy.view import Curve
from abkt.profile import schema
from abkt.records import RequestRecord, TransferRecord
from abkt.serve import ClusterRun, LocalClusterSpec
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.reports import CodedCurves
from abkt.spec import KVLayout, ModelSpec
from tests.codec.klt.conftest import make_basis, make_calibration

FIRST_RUNS = ["Fixed8"] * len(FIRST)
CURVE = Curve((100.0, 5000.0), (1.0, 1e-4), (0.0, 8.0))


@dataclass
class FakeCluster:
    """A cluster whose stages take 1 ms and 1 µs a token. policies: those it was asked to run."""

    spec: LocalClusterSpec
    model: ModelSpec = field(default_factory=lambda: ModelSpec("m", 2, 2, 8))
    policies: list[str] = field(default_factory=list)

    def run(self, prompts: list[Prompt], bitrate: dict[str, Any], *_: object) -> ClusterRun:
        name = bitrate["_target_"].rpartition(".")[2]
        mode = {"Raw": "raw", "Lossless": "lossless"}.get(name, "stream")
        self.policies.append(bitrate.get("coder", name + str(bitrate.get("bits", ""))))
        run = ClusterRun([], [])
        for p in prompts:
            seconds, raw_bytes = 1e-3 + 1e-6 * p.isl, self.model.kv_bytes(p.isl)
            busy = dict.fromkeys(("prefill_busy_s", "encode_busy_s", "expand_busy_s", "wire_busy_s"), seconds)
            run.requests.append(RequestRecord(p.request_id, p.isl, p.osl, 0.0, prefill_node="p0", decode_node="d0", **busy))
            run.transfers.append(
                TransferRecord(p.request_id, "p0", "d0", start_s=0.0, mode=mode, calls=1, wire_bytes=raw_bytes // 2, raw_bytes=raw_bytes)
            )
            run.iterations.append((1 + p.request_id % 3, p.isl, seconds))
            if mode == "stream":
                coder = bitrate.get("coder", "fixed")
                run.coded.append(CodedCurves(p.isl, coder, raw_bytes, CURVE, CURVE))
        return run


def prompts(shapes: list[tuple[int, int, float]]) -> list[Prompt]:
    return [Prompt(i, at_s, tuple(range(isl)), osl) for i, (isl, osl, at_s) in enumerate(shapes)]


@pytest.mark.parametrize(
    ("device", "runs"),
    [
        ("cpu", [*FIRST_RUNS, "Raw", "Lossless", "Fixed8", "Fixed4", "Fixed2", "entropy", "Raw"]),
        ("cuda", [*FIRST_RUNS, "Raw", "Fixed8", "Fixed4", "Fixed2", "Raw"]),
    ],
)
def test_what_is_coded_on_the_cpu_is_not_measured_on_a_gpu(device: str, runs: list[str]) -> None:
    cluster = FakeCluster(LocalClusterSpec(Path("m"), device=device))
    profile = calibrate(cluster, prompts, lambda name: None)  # type: ignore[arg-type]
    assert cluster.policies == runs
    assert ("encode/lossless" in profile.fits) == ("encode/entropy" in profile.fits) == (device == "cpu")
    assert profile.lossless_share == (pytest.approx(0.5, abs=0.01) if device == "cpu" else 0.0)
    for stage in ("prefill", "encode/raw", "encode/2", "encode/8", "expand/4"):
        assert profile.fit(stage).seconds(tokens=1000) == pytest.approx(2e-3)
    assert profile.curves


@pytest.mark.parametrize("laws", [True, False])
def test_klt_is_measured_where_a_calibration_predicts_divergence(tmp_path: Path, laws: bool) -> None:
    layout = KVLayout(FakeCluster(LocalClusterSpec(Path("m"))).model, 8)
    known = dict.fromkeys(("fixed", "entropy"), DivergenceLaw(1.0, 1.2)) if laws else {}
    calibration, file, said = make_calibration(layout, make_basis(layout), laws=known), tmp_path / "calibration.safetensors", list[str]()
    calibration.save(file)
    cluster = FakeCluster(LocalClusterSpec(Path("m"), calibration=file))
    profile = calibrate(cluster, prompts, lambda name: None, said.append)  # type: ignore[arg-type]
    assert ("klt" in cluster.policies) == profile.has_codec("klt") == laws
    assert {(curve.nats, curve.klt is not None, curve.calibration) for curve in profile.curves} == {(laws, laws, calibration.digest)}
    assert any("klt is left out, because the calibration has no divergence laws" in line for line in said) == (not laws)
    assert schema.parse(json.loads(json.dumps(asdict(profile)))) == profile


def test_a_handover_lasts_from_when_the_prompt_and_the_worker_are_there() -> None:
    """By hand: an idle worker; a prompt that arrives while the one before is computed; one that arrives after it."""

    def request(number: int, arrival_s: float, start_s: float, encode_s: float) -> RequestRecord:
        made = RequestRecord(number, 10, 2, arrival_s, prefill_token_s=start_s + 1.0, encode_exposed_s=encode_s)
        made.queue_exposed_s = start_s - arrival_s
        return made

    requests = [request(2, 6.0, 6.004, 0.0), request(0, 1.0, 1.002, 0.5), request(1, 1.5, 2.503, 0.25)]
    assert handovers(requests) == pytest.approx([0.002, 0.001, 0.004])


def record(isl: int, seconds: float) -> RequestRecord:
    return RequestRecord(0, isl, 2, 0.0, prefill_busy_s=seconds)


def test_prompts_are_spaced_by_what_they_take() -> None:
    measured = [RequestRecord(0, 100, 2, 0.0, prefill_busy_s=0.9, encode_busy_s=0.1), record(300, 3.0)]
    made = arrivals([70, 140, 35], Speed.of(measured, []))
    assert [isl for isl, _, _ in made] == [70, 140, 35]
    assert [at_s for _, _, at_s in made] == pytest.approx([0.0, 0.7 / LOAD, 2.1 / LOAD])


def test_a_fast_model_is_measured_at_full_length() -> None:
    planned = plan(Speed.of([record(64, 0.01), record(256, 0.04)], [(1, 64, 0.001)]), runs=6, max_batch=4, longest=2048, budget_s=300)
    assert (len(planned.lengths), min(planned.lengths), max(planned.lengths)) == (COUNTS[0], 64, 2048)
    assert planned.stall_s == 60


def test_a_slow_model_gets_shorter_prompts_and_its_plan_is_what_the_runs_take() -> None:
    """Quadratic in the length, as attention is. The plan's time against the sum by hand; the limit on silence grows with the longest."""
    speed = Speed.of([record(n, 0.02 * n + 1e-5 * n * n) for n in (64, 256, 512)], [(1, 64, 0.1)])
    assert speed.prompt_s(4096) == pytest.approx(0.02 * 4096 + 1e-5 * 4096**2)
    planned = plan(speed, runs=6, max_batch=4, longest=4096, budget_s=300)
    assert 512 <= max(planned.lengths) < 4096
    spaced = sum(0.02 * n + 1e-5 * n * n for n in planned.lengths) / LOAD + 24 * 0.1
    burst = sum(0.02 * n + 1e-5 * n * n for n in planned.burst) + 64 * 0.1
    assert planned.seconds == pytest.approx(6 * spaced + burst)
    assert planned.seconds <= 300 or max(planned.lengths) == 512
    generous = plan(speed, runs=6, max_batch=4, longest=4096, budget_s=3000)
    assert max(generous.lengths) > max(planned.lengths)
    assert generous.stall_s == pytest.approx(10 * speed.prompt_s(max(generous.lengths)))
    assert f"about {generous.seconds / 60:.0f} minutes" in generous.words


def test_a_slow_model_is_not_asked_for_the_longer_first_prompts() -> None:
    @dataclass
    class SlowCluster(FakeCluster):
        asked: list[int] = field(default_factory=list)
        limits: list[float] = field(default_factory=list)

        def run(self, prompts: list[Prompt], bitrate: dict[str, Any], *more: object) -> ClusterRun:
            self.asked += [p.isl for p in prompts]
            self.limits.append(self.spec.stall_timeout_s)
            run = FakeCluster.run(self, prompts, bitrate, *more)
            for r in run.requests:
                r.prefill_busy_s, r.encode_busy_s = 0.05 * r.isl, 1e-9
            return run

    said: list[str] = []
    done: list[str] = []
    cluster = SlowCluster(LocalClusterSpec(Path("m")))
    calibrate(cluster, prompts, done.append, said.append)  # type: ignore[arg-type]
    assert cluster.asked[:2] == [64, 128]
    assert cluster.limits[2] > 60, "256 tokens would take 12.8 s, so the third run is none of the first prompts"
    assert cluster.limits[0] == 60
    assert max(cluster.limits) == pytest.approx(10 * 0.05 * max(cluster.asked), rel=0.01)
    assert cluster.spec.stall_timeout_s == 60
    assert len(said) == 1
    assert "tokens and a burst; about" in said[0]
    assert len(done) == steps(cluster.spec)
