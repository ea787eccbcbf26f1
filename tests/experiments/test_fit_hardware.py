"""Tables of a made-up GPU whose coefficients are known, written as aiconfigurator writes them, and fitted."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from abkt.profile.kernels import GpuKernels
from experiments.cli import dispatch
from experiments.lib.compose import compose
from experiments.lib.config import read
from experiments.published.kernel_tables import KernelTables, fit_decode, fit_gpu

LAUNCH, RATE, READ, HEAD = 8e-6, 4e14, 2e12, 3e-8


def write_tables(folder: Path) -> None:
    folder.mkdir(parents=True)
    shapes = list(product((1, 8, 64, 128, 512, 2048, 8192), (4096, 8192, 16384), (4096, 8192, 16384)))
    gemm = pd.DataFrame(shapes, columns=["m", "n", "k"]).assign(gemm_dtype="bfloat16")
    gemm["latency"] = 1e3 * (LAUNCH + ((2 * gemm.m * gemm.n * gemm.k / RATE) ** 2 + (2 * gemm.n * gemm.k / READ) ** 2) ** 0.5)
    gemm.to_parquet(folder / "gemm_vllm_1.0_gemm_perf.parquet")
    rows = list(product((1, 4, 16, 64), (64, 256, 1024, 4096, 16384), (8, 32), (1, 8), (128,)))
    prefill = pd.DataFrame(rows, columns=["batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim"]).assign(
        kv_cache_dtype="bfloat16", window_size=0
    )
    work = 2 * prefill.batch_size * prefill.num_heads * 128 * prefill.isl**2 / RATE
    moved = 4 * prefill.batch_size * prefill.isl * 128 * (prefill.num_heads + prefill.num_key_value_heads) / READ
    prefill.assign(latency=1e3 * (LAUNCH + work + moved)).to_parquet(folder / "attention_vllm_1.0_context_attention_perf.parquet")
    decode = prefill.assign(step=prefill.isl - 1, isl=1)
    kv_bytes = 4 * decode.batch_size * (decode.step + 1) * 128 * decode.num_key_value_heads
    heads = decode.batch_size * decode.num_key_value_heads
    decode["latency"] = 1e3 * (LAUNCH + kv_bytes / READ + heads * HEAD)
    decode.to_parquet(folder / "attention_vllm_1.0_generation_attention_perf.parquet")


def test_known_coefficients_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tables(tmp_path / "data" / "h100_sxm")
    assert dispatch(["fit-hardware", f"data={tmp_path / 'data'}", "gpus=[h100_sxm]", "engines=[vllm]", f"out={tmp_path / 'out'}"]) == 0
    assert "vllm on h100_sxm: gemm bfloat16 0.0%" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"vllm", "manifest.json"}
    from omegaconf import OmegaConf

    made = read(GpuKernels, OmegaConf.to_container(OmegaConf.load(tmp_path / "out" / "vllm" / "h100_sxm.yaml")))
    for kernel in (made.gemm["bfloat16"], made.prefill_attention["128_bfloat16"]):
        assert (kernel.flops, kernel.bytes_per_s) == pytest.approx((RATE, READ), rel=0.03)
        assert kernel.error < 0.005
    assert made.gemm["bfloat16"].launch_s == pytest.approx(LAUNCH, rel=0.05)
    assert made.gemm["bfloat16"].sharpness == pytest.approx(2.0, rel=0.05)
    decode = made.decode_attention["128_bfloat16"]
    assert (decode.launch_s, decode.bytes_per_s, decode.head_s) == pytest.approx((LAUNCH, READ, HEAD), rel=0.03)
    assert made.experts == made.all_reduce == {}
    assert made.latent_decode == made.all_to_all == {}


def test_kv_that_the_cache_holds_is_no_measure_of_the_memory(tmp_path: Path) -> None:
    """Rows between the launch and twice the cache are a hundred times too fast here, and do not count."""
    write_tables(tmp_path / "h100_sxm")
    table = KernelTables(tmp_path / "h100_sxm").read("generation_attention")
    kv_bytes = 4 * table.batch_size * (table.step + 1) * 128 * table.num_key_value_heads
    cached = (kv_bytes > 1e6) & (kv_bytes < 1e8)
    assert cached.sum() > 10
    table.loc[cached, "s"] /= 100
    assert fit_decode(table, 128, 2.0, 50e6).bytes_per_s == pytest.approx(READ, rel=0.03)


def test_bad_input_is_reported_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["fit-hardware", f"data={tmp_path}", f"out={tmp_path / 'out'}"]) == 2
    assert "is not a folder of kernel tables" in capsys.readouterr().err
    (tmp_path / "h100_sxm").mkdir()
    assert dispatch(["fit-hardware", f"data={tmp_path}", "gpus=[h100_sxm]", f"out={tmp_path / 'out'}"]) == 2
    assert "no vllm tables of gemm" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="L2 cache"):
        fit_gpu(tmp_path / "mine")
    assert not (tmp_path / "out").exists()


def test_what_one_engine_lacks_or_has_timed_with_the_host_comes_from_another(tmp_path: Path) -> None:
    """One engine's GEMMs take the host 60 us, the other's take their launch."""
    folder = tmp_path / "h100_sxm"
    write_tables(folder)
    for path in list(folder.iterdir()):
        table = pd.read_parquet(path)
        if "gemm" in path.name:
            table["latency"] += 0.06
        table.to_parquet(folder / path.name.replace("_vllm_", "_sglang_"))
    made = fit_gpu(folder, "sglang")
    assert made.gemm["bfloat16"] == fit_gpu(folder, "vllm").gemm["bfloat16"]
    assert made.source.endswith("sglang 1.0")


@pytest.mark.parametrize("gpu", ["a100", "b200", "b300", "gb200", "gb300", "h100", "h200", "l40s", "rtx_pro_6000"])
def test_shipped_fits_name_their_source_and_errors(gpu: str) -> None:
    made = read(GpuKernels, compose("simulate", [f"hardware={gpu}"]).config["hardware"]["kernels"])
    assert "Apache-2.0" in made.source
    assert 0 < made.gemm["bfloat16"].error < 0.15
    assert made.gemm["bfloat16"].rows > 100
    assert {"128_bfloat16"} <= made.prefill_attention.keys() & made.decode_attention.keys()
    if gpu.startswith(("b", "gb")):  # Blackwell has units for 4 bits
        assert made.gemm["nvfp4"].flops > 1.5 * made.gemm["bfloat16"].flops
