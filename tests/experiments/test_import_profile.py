"""Profiles from layer tables whose seconds are known, and from samples."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from abkt.profile.schema import load
from abkt.spec import ModelSpec
from experiments.cli import dispatch
from experiments.published.layer_tables import read_layer_tables
from tests.experiments.test_fit_hardware import HEAD, LAUNCH, RATE, READ
from tests.experiments.test_fit_hardware import write_tables as write_kernel_tables

MODEL = ModelSpec("made-up", 10, 2, 64, hidden=128, heads=4)


def write_tables(folder: Path) -> None:
    """A block takes 2 (each norm) + 3 + 5 us and 0.1 us a token; the embedding 7 us; the lm_head 11 us and 1 us a sequence; attention of
    a prompt 4 us and 1 ns a pair; of decoding 6 us, 0.5 us a request and 2 ns a token of KV."""
    folder.mkdir()
    tokens = (1, 2, 4, 8, 16, 64, 256, 1024, 2048)
    layers = {"layernorm": (2.0, 0.0), "qkv_proj": (3.0, 0.1), "down_proj": (5.0, 0.0), "embedding": (7.0, 0.0)}
    dense = [(name, n, base + slope * n) for name, (base, slope) in layers.items() for n in tokens]
    pd.DataFrame(dense, columns=["layer", "tokens", "time_us"]).to_csv(folder / "dense.csv", index=False)
    heads = [("lm_head", n, 11.0 + n) for n in (1, 2, 4, 8, 64, 256)]
    pd.DataFrame(heads, columns=["layer", "sequences", "time_us"]).to_csv(folder / "per_sequence.csv", index=False)
    rows = [(c, b, 0, 0, 4 + 1e-3 * c * (b + c / 2)) for c, b in product((16, 64, 256, 1024), (0, 512, 4096))]
    rows += [(0, 0, n, kv, 6 + 0.5 * n + 2e-3 * n * kv) for n, kv in product((1, 4, 16, 64), (16, 256, 4096))]
    columns = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "attention.csv", index=False)


def test_a_pass_is_the_sum_of_its_layers(tmp_path: Path) -> None:
    write_tables(tmp_path / "tp1")
    costs = read_layer_tables(tmp_path / "tp1", MODEL, overhead_s=1e-3)
    assert max(costs.errors.values()) < 1e-6
    block, attention = 2 * 2.0 + 3.0 + 0.1 * 8 + 5.0, 6 + 0.5 * 8 + 2e-3 * 8000
    assert costs.iteration_s(8, 8000) == pytest.approx(1e-3 + (10 * (block + attention) + 7 + 11 + 8) / 1e6)
    prompt = 4 + 1e-3 * 100 * (500 + 50)
    assert costs.iteration_s(0, 0, 100, 500) == pytest.approx(1e-3 + (10 * (12.0 + 0.1 * 100 + prompt) + 7 + 12) / 1e6)


def test_a_mixture_takes_longer_where_more_experts_are_chosen(tmp_path: Path) -> None:
    """50 us for each expert that is touched, and 1 us for each token beyond 16 with all of them."""
    write_tables(tmp_path / "tp1")
    rows = [(n, a, 50.0 * a + max(0, n - 16)) for n, a in ((1, 2), (2, 2), (2, 4), (16, 2), (16, 4), (16, 8), (64, 8), (256, 8))]
    pd.DataFrame(rows, columns=["tokens", "activated_experts", "time_us"]).to_csv(tmp_path / "tp1" / "moe.csv", index=False)
    model = ModelSpec("mixture", 10, 2, 64, hidden=128, heads=4, experts=8, experts_active=2, expert_inner=64)
    with_experts = read_layer_tables(tmp_path / "tp1", model)
    with pytest.raises(ValueError, match="made-up has 0 experts"):
        read_layer_tables(tmp_path / "tp1", MODEL)
    (tmp_path / "tp1" / "moe.csv").unlink()
    without = read_layer_tables(tmp_path / "tp1", MODEL)
    few, many = (with_experts.pass_s(n) - without.pass_s(n) for n in (1, 1000))
    assert few == pytest.approx(10 * 2 * 50e-6)
    assert many == pytest.approx(10 * (8 * 50e-6 + (1000 - 16) * 1e-6))


def test_the_verb_writes_a_profile_that_the_simulator_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(tmp_path / "tp1")
    assert dispatch(["import-profile", f"tables={tmp_path / 'tp1'}", f"out={tmp_path / 'out'}", "hardware.overhead_s=0"]) == 0
    said = capsys.readouterr().out
    assert "prompt attention: mean relative error 0.0%" in said
    assert "hardware.kv_tokens=" in said
    profile = load(tmp_path / "out" / "profile.json")
    assert profile.source == "published"
    assert {"prefill", "decode", "pass", "encode/8", "transport"} <= profile.fits.keys()


def test_tables_of_aiconfigurator_become_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Llama-3.1-8B on kernels whose coefficients are known: a decode step is its GEMMs, its attention and the overhead, summed by hand; its
    elementwise kernels, which have no table, are the few per cent that are left. The simulator reads the profile."""
    write_kernel_tables(tmp_path / "h100_sxm")
    tables, out = [f"tables={tmp_path / 'h100_sxm'}", "hardware=h100"], tmp_path / "out"
    assert dispatch(["import-profile", "kind=aiconfigurator", *tables, "hardware.overhead_s=0.001", f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert "kernels: mean relative error 0." in said
    assert "decode, straight lines" in said

    def gemm_s(m: int, n: int, k: int) -> float:
        return LAUNCH + math.hypot(2 * m * n * k / RATE, 2 * n * k / READ)

    batch, tokens = 64, 64 * 4096
    block_s = sum(gemm_s(batch, n, k) for n, k in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)))
    attention_s = LAUNCH + 4 * tokens * 8 * 128 / READ + batch * 8 * HEAD
    step_s = 0.001 + 32 * (block_s + attention_s) + gemm_s(batch, 128256, 4096)
    assert load(out / "profile.json").fit("decode").seconds(batch=batch, context=tokens) == pytest.approx(step_s, rel=0.05)
    run = [
        "simulate",
        "model=llama-3.1-8b",
        "hardware=profile",
        f"hardware.profile={out / 'profile.json'}",
        "workload=poisson",
        "workload.requests=5",
    ]
    assert dispatch([*run, f"out={tmp_path / 'run'}"]) == 0


def test_aiconfigurators_tables_that_lack_a_family_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "h100_sxm").mkdir()
    assert dispatch(["import-profile", "kind=aiconfigurator", f"tables={tmp_path / 'h100_sxm'}", f"out={tmp_path / 'out'}"]) == 2
    assert "no vllm tables of gemm" in capsys.readouterr().err
    assert not (tmp_path / "out" / "profile.json").exists()


def test_samples_of_an_engine_are_fitted(tmp_path: Path) -> None:
    prefill = [[{"tokens": n}, 0.01 + 1e-4 * n + 1e-9 * n * n] for n in (64, 256, 1024, 4096)]
    decode = [[{"batch": b, "context": b * c}, 0.005 + 1e-5 * b + 1e-8 * b * c] for b in (1, 8, 64) for c in (100, 3000)]
    (tmp_path / "s.json").write_text(json.dumps({"engine": "vLLM 0.25", "stages": {"prefill": prefill, "decode": decode}}))
    assert dispatch(["import-profile", "kind=samples", f"tables={tmp_path / 's.json'}", f"out={tmp_path / 'out'}"]) == 0
    profile = load(tmp_path / "out" / "profile.json")
    assert profile.fit("decode").seconds(batch=16, context=16_000) == pytest.approx(0.005 + 16e-5 + 16e-5, rel=1e-6)
    assert profile.fingerprint["tables"] == "vLLM 0.25"
    assert "pass" not in profile.fits  # such samples do not tell what a mixed pass shares


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("samples", "[]", "is not a file of samples"),
        ("samples", '{"stages": {}}', "has no stage decode"),
        ("llmservingsim", "", "does not exist"),
    ],
)
def test_wrong_tables_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, text: str, message: str
) -> None:
    (tmp_path / "file").write_text(text)
    assert dispatch(["import-profile", f"kind={kind}", f"tables={tmp_path / 'file'}", f"out={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "profile.json").exists()
