"""Made-up curves and a made-up study: simulated records, and the same records with noise in place of measured ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from abkt.policy.view import Curve
from abkt.profile.roofline import GpuSpec, roofline
from abkt.profile.schema import RateCurve
from abkt.records import RequestRecord, summarize
from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.lib.curves import save_curves
from experiments.lib.manifest import write_manifest
from experiments.lib.results import write_json, write_records
from experiments.lib.simulation import SimulateConfig, build_simulation, run_simulation, write_result
from experiments.lib.verb import VerbCall
from experiments.lib.workload import read_workload
from experiments.study.answer import answer
from experiments.study.folder import StudyFacts, real, scaleout, simulated, write_study

POLICIES = ("raw", "int8", "int4", "embedded")
REPEATS = 3
ROUTINGS = ("round_robin", "load_aware")


def made_up_curves() -> tuple[RateCurve, ...]:
    """Distortion falls by four with every bit; the uniform order pays a little more for its metadata."""
    bits = tuple(i / 4 for i in range(33))
    distortion = tuple(2.0 ** (-2 * b) for b in bits)
    slope, uniform = (Curve(tuple(edge + b / 16 for b in bits), distortion, bits) for edge in (0.02, 0.03))
    return tuple(RateCurve(tokens, slope, uniform) for tokens in (128, 512, 2048))


@pytest.fixture(scope="session")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("curves") / "probe.json"
    save_curves(made_up_curves(), path)
    return path


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, curves: Path) -> Path:
    """A study folder without its report."""
    folder = tmp_path_factory.mktemp("study")
    write_made_up_study(folder, curves)
    return folder


def write_made_up_study(folder: Path, curves: Path) -> None:
    gpu = GpuSpec("made-up", flops=2e11, memory_bytes_per_s=1e10, memory_bytes=1e9, overhead_s=0.01)
    config = _config(curves, *_TWIN)
    requests, scaling = read_workload(config.workload, seed=0)
    profile = roofline(gpu, config.model, made_up_curves())
    for policy in POLICIES:
        config = _config(curves, f"bitrate={policy}", *_TWIN)
        result = run_simulation(build_simulation(replace(config, hardware=gpu), requests), progress=False)
        write_result(simulated(folder, policy), result, config.slo, made_up_curves())
        noise = np.random.default_rng(POLICIES.index(policy))
        for repeat in range(1, REPEATS + 1):
            measured = [_measured(record, 1 + 0.08 * noise.standard_normal(), 0.006) for record in result.requests]
            write_records(real(folder, policy, repeat), measured, result.transfers)
            write_json(real(folder, policy, repeat) / "summary.json", summarize(measured, config.slo, wall_s=60.0))
    big = _config(curves, *_BIG)
    many, _ = read_workload(big.workload, seed=0)
    for routing in ROUTINGS:
        for bitrate in POLICIES:
            big = _config(curves, f"routing={routing}", f"bitrate={bitrate}", *_BIG)
            result = run_simulation(build_simulation(big, many), progress=False)
            write_result(scaleout(folder, routing, bitrate), result, big.slo, made_up_curves())
    profile.save(folder / "profile.json")
    facts = StudyFacts(
        policies=POLICIES,
        repeats=REPEATS,
        routings=ROUTINGS,
        bitrates=POLICIES,
        max_distortion=0.02,
        load=0.6,
        slo=config.slo,
        scaleout_slo=big.slo,
        link=config.network.capacity(),
        scaling=scaling,
        chosen=["SLO: TTFT 1 s, as given."],
        again="workload.scaling.requests=40",
        compute="compute in float32",
        minutes={"asked": 5.0, "planned": 5.2, "actual": 5.1},
        scaleout={"model": "llama-3.1-8b", "hardware": "H100 SXM", "cluster": "4P4D", "network": "8 Gbit/s", "workload": "mooncake"},
        notes=["Prompts are scaled to what the probe can hold.", "The link is paced in user space."],
    )
    found = answer(folder, POLICIES, REPEATS, config.slo, 0.02)
    write_study(folder, facts, found.summary())
    write_json(folder / "compare.json", found.compare)
    write_manifest(VerbCall("study", ("out=DIR",), {"seed": 0, "policies": list(POLICIES)}, {}, folder), [curves])


_TWIN = (
    *("model=probe", "cluster=1p1d", "network=mid_drop", "network.gbps=0.03", "slo=twin"),
    *(f"workload.scaling.{key}" for key in ("requests=40", "speedup=0.4", "isl_scale=0.08", "isl_min=64", "isl_max=1500")),
)
_BIG = ("network.gbps=8", "workload.scaling.requests=60")


def _config(curves: Path, *overrides: str) -> SimulateConfig:
    small = (*overrides, "workload.scaling.osl_scale=0.1", f"curves={curves}", "progress=false")
    return read(SimulateConfig, {**compose("simulate", small).config, "out": curves.parent})


def _measured(record: RequestRecord, factor: float, delay_s: float) -> RequestRecord:
    """The record with all its exposed times stretched, and a little more waiting on the wire."""
    stretched = replace(record, wire_exposed_s=record.wire_exposed_s + delay_s)
    for stage in ("prefill", "encode", "wire", "expand", "decode"):
        setattr(stretched, f"{stage}_exposed_s", getattr(stretched, f"{stage}_exposed_s") * factor)
    before_s = sum(getattr(stretched, f"{s}_exposed_s") for s in ("queue", "prefill", "encode", "wire", "expand"))
    first_s = record.decode_token_s - (record.finish_s - record.decode_exposed_s)
    stretched.decode_token_s = record.arrival_s + before_s + first_s * factor
    stretched.finish_s = record.arrival_s + before_s + stretched.decode_exposed_s
    return stretched
