"""Which runs a calibration makes, on a fake cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from abkt.measure.cluster import LOAD, LONGEST_S, WARM_TOKENS, arrivals, calibrate, handovers, longest_prompt
from abkt.policy.view import Curve
from abkt.records import RequestRecord, TransferRecord
from abkt.serve import ClusterRun, LocalClusterSpec
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.reports import CodedCurves
from abkt.spec import ModelSpec

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
        ("cpu", ["Fixed8", "Fixed8", "Raw", "Lossless", "Fixed8", "Fixed4", "Fixed2", "entropy", "Raw"]),
        ("cuda", ["Fixed8", "Fixed8", "Raw", "Fixed8", "Fixed4", "Fixed2", "Raw"]),
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


def test_a_handover_lasts_from_when_the_prompt_and_the_worker_are_there() -> None:
    """By hand: an idle worker; a prompt that arrives while the one before is computed; one that arrives after it."""

    def request(number: int, arrival_s: float, start_s: float, encode_s: float) -> RequestRecord:
        made = RequestRecord(number, 10, 2, arrival_s, prefill_token_s=start_s + 1.0, encode_exposed_s=encode_s)
        made.queue_exposed_s = start_s - arrival_s
        return made

    requests = [request(2, 6.0, 6.004, 0.0), request(0, 1.0, 1.002, 0.5), request(1, 1.5, 2.503, 0.25)]
    assert handovers(requests) == pytest.approx([0.002, 0.001, 0.004])


def test_prompts_are_spaced_by_what_they_take() -> None:
    measured = [RequestRecord(0, 100, 2, 0.0, prefill_busy_s=0.9, encode_busy_s=0.1), RequestRecord(1, 300, 2, 0.0, prefill_busy_s=3.0)]
    made = arrivals([70, 140, 35], measured)
    assert [isl for isl, _, _ in made] == [70, 140, 35]
    assert [at_s for _, _, at_s in made] == pytest.approx([0.0, 0.7 / LOAD, 2.1 / LOAD])


def test_a_slow_machine_measures_shorter_prompts() -> None:
    assert longest_prompt(2048, 1e-4) == 2048
    assert longest_prompt(2048, LONGEST_S / 700) in (699, 700)
    assert longest_prompt(2048, 1.0) == WARM_TOKENS
    assert longest_prompt(128, 1.0) == 128  # a model of short prompts
