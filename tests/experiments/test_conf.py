"""Every choice of every group can be built and has the right values."""

from __future__ import annotations

import csv
import io
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import pytest

from abkt.capacity import Capacity
from abkt.policy.build import build
from abkt.policy.view import GoodputSample
from abkt.profile.roofline import profile_of
from experiments.lib import usage
from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.lib.curves import load_curves
from experiments.lib.paths import ROOT, conf_dir, data_path
from experiments.lib.simulation import SimulateConfig, build_simulation
from experiments.lib.workload import read_workload

TRACES = ("azure", "burstgpt", "sharegpt", "arxiv", "longbench")  # the user's own files
# Composing takes time, so groups that do not depend on each other are tried together: the first choice of each, then the second, …
TOGETHER = (
    ("bitrate", "workload", "routing", "admission", "cluster"),
    ("network", "engine", "transport"),
    ("hardware", "roles", "faults", "slo"),
    ("model",),
)
USERS = {"workload": (*TRACES, "servegen"), "hardware": ("profile",), "network": ("wan_5g",)}
Row = tuple[tuple[str, str], ...]


def rows(groups: tuple[str, ...]) -> list[Row]:
    each = [[(group, choice) for choice in usage.choices(group) if choice not in USERS.get(group, ())] for group in groups]
    return [tuple(choices[i] for choices in each if i < len(choices)) for i in range(max(map(len, each)))]


ROWS = [row for groups in TOGETHER for row in rows(groups)]
GIVEN = {**{name: ["workload.path=trace.csv"] for name in TRACES}, "servegen": ["workload.lengths=l.csv", "workload.rates=r.csv"]}
GIVEN |= {"profile": ["hardware.profile=profile.json"], "llama-3.1-70b": ["hardware.gpus=4"]}
GIVEN["wan_5g"] = ["network.path=drive.parquet"]
GIVEN["deepseek-v3"] = ["hardware.gpus=32"]
GIVEN["kimi-k2"] = GIVEN["deepseek-v3"]
GIVEN["qwen3-235b-a22b"] = GIVEN["minimax-m2.5"] = ["hardware.gpus=8"]
GIVEN["mixtral-8x7b"] = GIVEN["qwen3-32b"] = GIVEN["llama-3.1-70b"]


def config(curves: Path, *overrides: str) -> SimulateConfig:
    return read(SimulateConfig, {**compose("simulate", [*overrides, f"curves={curves}"]).config, "out": Path("out")})


@lru_cache
def made_of(curves: Path, row: Row) -> SimulateConfig:
    given = [text for _, choice in row for text in GIVEN.get(choice, [])]
    return config(curves, "workload=poisson", *(f"{group}={choice}" for group, choice in row), *given)


def with_choice(curves: Path, group: str, choice: str) -> SimulateConfig:
    return made_of(curves, next(row for row in ROWS if (group, choice) in row))


def test_every_choice_is_tried() -> None:
    tried = [*(pair for row in ROWS for pair in row), *((group, choice) for group, choices in USERS.items() for choice in choices)]
    assert sorted(tried) == sorted((group, choice) for group in usage.groups("simulate") for choice in usage.choices(group))


@pytest.mark.parametrize("row", ROWS, ids=[" ".join(f"{group}={choice}" for group, choice in row) for row in ROWS])
def test_every_choice_builds(row: Row, curves: Path) -> None:
    made = made_of(curves, row)
    requests, _ = read_workload(made.workload, seed=0, closed_loop=True)
    simulation = build_simulation(made, requests[:2])
    assert len(simulation.cluster.prefill) == made.cluster.prefill
    assert len(simulation.cluster.decode) == made.cluster.decode


@pytest.mark.parametrize(("group", "choice"), [(group, choice) for group, choices in USERS.items() for choice in choices])
def test_a_choice_with_the_users_files_composes(group: str, choice: str, curves: Path) -> None:
    assert getattr(made_of(curves, ((group, choice),)), group)


# layers x 2 (1 for a latent) x kv_heads x head_dim x 2 bytes of bf16, as published with each model
KV_BYTES = """model,bytes
llama-3.2-1b,32768
smollm2-135m,23040
llama-3.1-8b,131072
llama-3.1-70b,327680
qwen3-8b,147456
qwen3-32b,262144
qwen3-30b-a3b,98304
mixtral-8x7b,131072
qwen3-235b-a22b,192512
minimax-m2.5,253952
kimi-k2,70272
deepseek-v3,70272
gpt-oss-120b,73728
gpt-oss-20b,49152
probe,3072
"""


def test_models_have_their_published_kv_sizes(curves: Path) -> None:
    table = {row["model"]: int(row["bytes"]) for row in csv.DictReader(io.StringIO(KV_BYTES))}
    assert sorted(table) == usage.choices("model")
    for name, size in table.items():
        spec = with_choice(curves, "model", name).model
        assert (spec.name, spec.kv_bytes_per_token) == (name, size)


def test_dense_models_have_the_parameters_that_their_shapes_give(curves: Path) -> None:
    """Attention and MLP of each layer, and two tables of vocabulary x hidden (one where it is tied)."""
    shapes = {"llama-3.1-8b": (14336, 2 * 128256), "llama-3.1-70b": (28672, 2 * 128256), "llama-3.2-1b": (8192, 128256)}
    shapes |= {"qwen3-8b": (12288, 2 * 151936), "qwen3-32b": (25600, 2 * 151936), "probe": (704, 2048), "smollm2-135m": (1536, 49152)}
    for name, (inner, tables) in shapes.items():
        spec = with_choice(curves, "model", name).model
        attention = 2 * spec.hidden * spec.heads * spec.head_dim + 2 * spec.hidden * spec.kv_heads * spec.head_dim
        count = spec.layers * (attention + 3 * spec.hidden * inner) + tables * spec.hidden
        assert spec.parameters == pytest.approx(count, rel=0.005)
        assert spec.active_parameters == spec.parameters
        assert spec.inner == inner


def test_models_of_experts_have_the_parameters_that_their_shapes_give(curves: Path) -> None:
    """As above, with `experts` MLPs a layer; of MLA the projections of DeepSeek-V2's paper (arXiv 2405.04434, section 2.1)."""
    for name in ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v3", "gpt-oss-120b", "gpt-oss-20b"):
        m = with_choice(curves, "model", name).model
        attention = 2 * m.hidden * (m.heads + m.kv_heads) * m.head_dim
        if m.kv_kinds == 1:
            latent = m.head_dim - 64  # the rest carries the position
            attention = m.hidden * (m.query_latent + m.head_dim) + m.query_latent * m.heads * m.key_dim
            attention += latent * m.heads * (m.key_dim - 64 + m.value_dim) + m.hidden * m.heads * m.value_dim
        each, sparse = 3 * m.hidden * m.expert_inner, m.layers - m.dense_layers
        others = m.layers * attention + m.dense_layers * 3 * m.hidden * m.inner + 2 * m.vocabulary * m.hidden
        assert m.parameters == pytest.approx(others + sparse * (m.experts + m.shared_experts) * each, rel=0.01)
        active = others + sparse * (m.experts_active + m.shared_experts) * each
        assert 0.97 * (active - m.vocabulary * m.hidden) < m.active_parameters < 1.03 * active  # some count the first table, some do not


@pytest.mark.parametrize("hardware", ["a100", "h100", "h200", "l40s"])
def test_published_kernels_are_fast_enough_and_not_too_fast(hardware: str, curves: Path) -> None:
    """A step reads all weights no faster than the data sheet, a prompt computes no faster than its peak; both within a factor of 2.1."""
    made = config(curves, f"hardware={hardware}", "hardware.overhead_s=0", "hardware.request_s=0")
    gpu, model = made.hardware, made.model
    profile = profile_of(gpu, model, load_curves(curves))
    assert profile.source == "published"
    least_s = (model.parameters - model.vocabulary * model.hidden) * 2 / gpu.memory_bytes_per_s
    assert least_s < profile.fit("decode").seconds(batch=1, context=1) < 2.1 * least_s
    least_s = 2 * (model.parameters - 2 * model.vocabulary * model.hidden) * 4096 / gpu.flops
    assert least_s < profile.fit("prefill").seconds(tokens=4096) < 2.1 * least_s


def test_a_network_scales_as_a_whole(curves: Path) -> None:
    """20 Gbit/s are 2.5 GB/s, and mid_drop leaves a tenth from 15 s to 30 s of every minute."""
    made = config(curves, "network=mid_drop", "network.gbps=20")
    assert made.network.capacity() == Capacity((0.0, 15.0, 30.0), (2.5e9, 2.5e8, 2.5e9), 60.0)


def test_a_policy_expects_the_configured_link_until_its_first_sample(curves: Path) -> None:
    made = config(curves, "network=constant", "network.gbps=4")
    policy = build(made.bitrate)
    assert policy.estimate_bytes_per_s(0.0) == 5e8
    policy.observe(1.0, GoodputSample(1e6, 0.5))
    assert policy.estimate_bytes_per_s(1.0) == 2e6


def test_objects_are_accepted_as_they_are(curves: Path) -> None:
    for overrides in ([], ["hardware=profile", "hardware.profile=p.json", "workload=poisson"]):
        made = config(curves, *overrides)
        assert read(SimulateConfig, {field.name: getattr(made, field.name) for field in fields(made)}) == made


def test_the_scale_out_of_a_study_keeps_its_own_link_and_limits() -> None:
    """Interpolations of a group would reach for the twin's values, which are another cluster's."""
    study = compose("study", ["slo@scaleout.slo=interactive", "network@scaleout.network=100g"]).config
    assert study["scaleout"]["routings"]["load_aware"]["tpot_slo_s"] == study["scaleout"]["slo"]["tpot_s"] != study["slo"]["tpot_s"]
    assert study["scaleout"]["bitrates"]["embedded"]["link"]["initial_bytes_per_s"] == 12.5e9
    assert study["bitrates"]["embedded"]["link"]["initial_bytes_per_s"] == study["network"]["gbps"] * 1.25e8


def test_each_verbs_configuration_composes_with_its_required_keys() -> None:
    for path in conf_dir().glob("*.yaml"):
        missing = [f"{key}=x" for key, value, _ in usage.keys(path) if value == "???"]
        assert compose(path.stem, missing).config["out"] is None


def test_the_data_that_comes_with_abkt() -> None:
    assert conf_dir() == ROOT / "conf"
    trace = data_path("traces/mooncake_conversation.jsonl.gz")
    assert trace.is_file()
    assert trace.name in (ROOT / "data" / "ATTRIBUTION.md").read_text()


def test_a_bound_knows_the_network_that_is_configured(curves: Path) -> None:
    for network in ("oscillating", "gradual", "25g", "unlimited"):
        made = config(curves, f"network={network}", "bitrate=oracle_bandwidth")
        knows, is_so = build(made.bitrate).link, made.network.capacity()
        assert [knows.at(float(t)) for t in range(100)] == [is_so.at(float(t)) for t in range(100)]


@pytest.mark.parametrize("name", [choice for choice in usage.choices("bitrate") if choice.endswith("_off")])
def test_off_holds_the_policy_of_its_name(name: str, curves: Path) -> None:
    assert with_choice(curves, "bitrate", name).bitrate["inner"] == with_choice(curves, "bitrate", name.removesuffix("_off")).bitrate


def test_every_policy_but_raw_has_an_off_switch_or_is_off_by_itself() -> None:
    alone = {"raw", "embedded", "fleet", "oracle_bandwidth", "oracle_profile"}
    plain = {choice for choice in usage.choices("bitrate") if not choice.endswith("_off")}
    assert {f"{choice}_off" for choice in plain - alone} <= set(usage.choices("bitrate"))
