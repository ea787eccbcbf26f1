"""Measure this machine: run calibration requests through a real 1P1D cluster, and fit the times of its stages.

The measured workers are real serving workers. Each runs on its own core while the other computes, so every cost is a cost under load. There
are seven kinds of run over an unpaced link: raw, lossless, each depth of the fixed coder, the entropy coder, the klt coder, and a burst for
large decode batches. On a GPU, the lossless, entropy and klt runs are left out, since these are coded on the CPU. The klt run needs a
calibration that predicts divergence (Calibration.laws), for only then are its distortions comparable with those of the other coders.
Workers that share a GPU take turns (LocalClusterSpec.shares_device).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from abkt.capacity import Capacity
from abkt.codec.calibration import load
from abkt.measure.plan import BURST_OSL, FIRST, FIRST_S, OSL, Speed, arrivals, plan
from abkt.profile.fingerprint import fingerprint
from abkt.profile.schema import DEPTHS_BITS, Profile, RateCurve, Sample, fit_stages
from abkt.records import SLO, RequestRecord
from abkt.serve.cluster import ClusterRun, LocalCluster
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.spec import LocalClusterSpec

UNLIMITED = Capacity.constant(float("inf"))
NO_SLO = SLO(ttft_s=60.0, tpot_s=60.0)
BUDGET_S = 300.0
USUAL_NATS = 0.002  # the divergence at which klt is cut, because expanding takes time by what has arrived; the target of embedded
SAME_DISTORTION = 0.01  # the distortion at which the sizes of the two coders are compared
FULL_PRECISION = {"raw": "abkt.policy.bitrate.fixed.Raw", "lossless": "abkt.policy.bitrate.lossless.Lossless"}


@dataclass(slots=True)
class Samples:
    """What the runs measured: (variables, seconds) by stage, rate-distortion curves of the coded prompts, bytes of the lossless ones."""

    stages: dict[str, list[Sample]] = field(default_factory=dict)
    curves: list[RateCurve] = field(default_factory=list)
    lossless_bytes: int = 0
    lossless_raw_bytes: int = 0
    entropy: list[RateCurve] = field(default_factory=list)
    klt: list[RateCurve] = field(default_factory=list)

    def add(self, run: ClusterRun, depth: str, calibration: str, nats: bool) -> None:
        """calibration: its digest, empty if there is none. nats: whether streams state the divergence of answers."""
        for record in run.requests:
            if record.outcome != "completed":
                raise ValueError(f"calibration request {record.request_id} {record.outcome}: {record.reason}")
            tokens = {"tokens": float(record.isl)}
            self._take("prefill", tokens, record.prefill_busy_s)
            self._take(f"encode/{depth}", tokens, record.encode_busy_s)
            self._take(f"expand/{depth}", tokens, record.expand_busy_s)
        for stage, taken in (run.overheads or {"handover": handovers(run.requests)}).items():
            for seconds in taken:
                self._take(stage, {}, seconds)
        busy_s = {record.request_id: record.wire_busy_s for record in run.requests}
        for transfer in run.transfers:
            self._take("transport", {"calls": float(transfer.calls), "bytes": float(transfer.wire_bytes)}, busy_s[transfer.request_id])
            if transfer.mode == "lossless":
                self.lossless_bytes += transfer.wire_bytes
                self.lossless_raw_bytes += transfer.raw_bytes
        for batch, context, seconds in run.iterations:
            self._take("decode", {"batch": float(batch), "context": float(context)}, seconds)
        for coded in run.coded:
            slope, uniform = (curve.scaled(1 / coded.raw_bytes) for curve in (coded.slope, coded.uniform))
            kept = {"entropy": self.entropy, "klt": self.klt}.get(coded.coder, self.curves)
            kept.append(RateCurve(coded.tokens, slope, uniform, calibration, nats))

    def rate_curves(self) -> tuple[RateCurve, ...]:
        """The fixed coder's curves at full depth, each with the klt curve of a prompt of the same length, if klt was measured."""
        whole = [curve for curve in self.curves if curve.slope.bits[-1] >= max(DEPTHS_BITS)]
        if not self.klt:
            return tuple(whole)
        left, paired = list(self.klt), []
        for curve in whole:
            if same := next((other for other in left if other.tokens == curve.tokens), None):
                left.remove(same)
                paired.append(replace(curve, klt=same.slope))
        return tuple(paired)

    def entropy_share(self) -> float:
        """Bytes of the entropy coder relative to the fixed one: the median over prompts of at least 128 tokens that both coded."""
        pairs = [(e.slope, f.slope) for e in self.entropy for f in self.curves if e.tokens == f.tokens >= 128]
        bytes_of = [(e.bytes[e.cut_reaching(SAME_DISTORTION)], f.bytes[f.cut_reaching(SAME_DISTORTION)]) for e, f in pairs]
        return float(np.median([entropy / fixed for entropy, fixed in bytes_of])) if pairs else 0.0

    def _take(self, stage: str, variables: dict[str, float], seconds: float) -> None:
        if not math.isnan(seconds):  # not known
            self.stages.setdefault(stage, []).append((variables, max(seconds, 1e-9)))


def handovers(requests: Sequence[RequestRecord]) -> list[float]:
    """The seconds from when a prompt had arrived, and the one prefill worker had encoded the one before, until its pass began.

    The worker's process is woken, reports, and takes the next prompt in these seconds. They are small, but every queue is made of them."""
    began = sorted((r.arrival_s + r.queue_exposed_s, r.arrival_s, r.prefill_token_s + r.encode_exposed_s) for r in requests)
    free_s, found = -math.inf, []
    for start_s, arrival_s, encoded_s in began:
        found.append(start_s - max(arrival_s, free_s))
        free_s = encoded_s
    return found


Prompts = Callable[[Sequence[tuple[int, int, float]]], list[Prompt]]


def calibrate(
    cluster: LocalCluster,
    prompts: Prompts,
    progress: Callable[[str], None],
    say: Callable[[str], None] = lambda line: None,
    budget_s: float = BUDGET_S,
) -> Profile:
    """Measure a Profile of this machine.

    Parameters
    ----------
    cluster : a running 1P1D cluster.
    prompts : makes prompts for given (isl, osl, arrival_s).
    progress : called with the name of each run, `steps` times.
    say : called with what will be measured and about how long it takes, after the first prompts have shown how fast the model is.
    budget_s : about how long it may take; prompts get shorter and fewer where the model is slow.
    """
    depths = runs(cluster.spec)
    longest = min(cluster.model.max_tokens // 2, cluster.spec.pool_tokens // 4)
    progress("first prompts")
    speed = first_prompts(cluster, prompts, longest)
    planned = plan(speed, len(depths), cluster.spec.max_batch, longest, budget_s)
    say(planned.words)
    calibration = load(cluster.spec.calibration) if cluster.spec.calibration else None
    if calibration and calibration.basis and not calibration.laws:
        say("klt is left out, because the calibration has no divergence laws; make it again with `abkt quality calibrate=true`")
    order = np.random.default_rng(0).permutation(len(planned.lengths))
    spaced = arrivals([planned.lengths[i] for i in order], speed)
    burst = [(isl, BURST_OSL, 0.0) for isl in planned.burst]
    samples = Samples()
    digest, nats = (calibration.digest, bool(calibration.laws)) if calibration else ("", False)
    usual, cluster.spec = cluster.spec, replace(cluster.spec, stall_timeout_s=max(planned.stall_s, cluster.spec.stall_timeout_s))
    try:
        for depth in depths:
            progress(f"{depth} bits" if depth.isdigit() else depth)
            samples.add(cluster.run(prompts(spaced), _policy(depth), UNLIMITED, NO_SLO), depth, digest, nats)
        progress("burst")
        samples.add(cluster.run(prompts(burst), _policy("raw"), UNLIMITED, NO_SLO), "raw", digest, nats)
    finally:
        cluster.spec = usual
    return Profile(
        model=cluster.model,
        fits=fit_stages(samples.stages),
        curves=samples.rate_curves(),
        fingerprint=fingerprint(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        lossless_share=samples.lossless_bytes / samples.lossless_raw_bytes if samples.lossless_raw_bytes else 0.0,
        entropy_share=samples.entropy_share(),
    )


def runs(spec: LocalClusterSpec) -> tuple[str, ...]:
    """The runs that a profile of this cluster measures, besides the first prompts and a burst."""
    on_cpu = spec.device == "cpu"
    slow = [coder for coder in spec.coders if coder != "fixed"]
    return ("raw", *(["lossless"] if on_cpu else []), *map(str, reversed(DEPTHS_BITS)), *slow)


def steps(spec: LocalClusterSpec) -> int:
    """How often `calibrate` calls its progress."""
    return len(runs(spec)) + 2


def first_prompts(cluster: LocalCluster, prompts: Prompts, longest: int) -> Speed:
    """How fast the model is, by prompts of growing length, until one would take longer than FIRST_S."""
    requests: list[RequestRecord] = []
    iterations: list[tuple[int, int, float]] = []
    for isl in [n for n in FIRST if n <= longest] or [longest]:
        if len(requests) > 1 and Speed.of(requests, iterations).prompt_s(isl) > FIRST_S:
            break
        run = cluster.run(prompts([(isl, OSL, 0.0)]), _policy(8), UNLIMITED, NO_SLO)
        requests += run.requests
        iterations += run.iterations
    return Speed.of(requests, iterations)


def _policy(depth: object) -> dict[str, object]:
    if depth in FULL_PRECISION:
        return {"_target_": FULL_PRECISION[str(depth)]}
    if depth == "entropy":
        return {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": max(DEPTHS_BITS), "coder": "entropy"}
    if depth == "klt":
        return {"_target_": "abkt.policy.bitrate.equal.Equal", "distortion": USUAL_NATS, "coder": "klt"}
    return {"_target_": "abkt.policy.bitrate.fixed.Fixed", "bits": int(str(depth))}
