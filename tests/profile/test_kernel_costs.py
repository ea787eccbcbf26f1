"""Costs from kernels, against the bytes and operations of the whole model."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from abkt.profile.kernels import (
    Collective,
    DecodeKernel,
    GpuKernels,
    Kernel,
    experts_key,
    imbalance,
    latent_projections,
    touched_experts,
)
from abkt.profile.model_costs import ModelCosts, Parallel
from abkt.profile.roofline import GpuSpec, SheetCosts, Speculation, kv_tokens, profile_of
from abkt.profile.schema import RateCurve
from abkt.spec import ModelSpec

DENSE = ModelSpec("dense", 4, kv_heads=2, head_dim=128, hidden=1024, heads=8, inner=4096, vocabulary=5000)
EXPERTS = ModelSpec(
    "experts", 4, kv_heads=2, head_dim=128, hidden=1024, heads=8, vocabulary=5000, experts=16, experts_active=2, expert_inner=512
)
LATENT = ModelSpec(
    "latent", 4, 1, 576, hidden=1024, heads=8, inner=4096, vocabulary=5000, kv_kinds=1, query_latent=256, key_dim=192, value_dim=128
)


def dense_weights(m: ModelSpec) -> float:
    layer = m.hidden * (2 * m.heads + 2 * m.kv_heads) * m.head_dim + 3 * m.hidden * m.inner
    return m.layers * layer + m.vocabulary * m.hidden


def kernels(flops: float = inf, bytes_per_s: float = inf, launch_s: float = 0.0) -> GpuKernels:
    one = Kernel(launch_s, flops, bytes_per_s, 1.0, inf, 0.0, 1)
    return GpuKernels(
        source="made up",
        gemm={"bfloat16": one, "nvfp4": one},
        prefill_attention={"128_bfloat16": one},
        decode_attention={"128_bfloat16": DecodeKernel(launch_s, bytes_per_s, 0.0, 0.0, 1)},
        latent_prefill={"bfloat16_bfloat16": one},
        latent_decode={"bfloat16_bfloat16": one},
        all_reduce={2: Collective(1e-5, 1e9, 0.0, 1e6, 0.0, 1)},
        all_to_all={2: Collective(2e-5, 5e8, 0.0, 1e6, 0.0, 1)},
        experts={experts_key(EXPERTS): one},
    )


def costs(model: ModelSpec, made: GpuKernels, gpus: int = 1, expert_parallel: int = 1, data_parallel: int = 1, **more: float) -> ModelCosts:
    return ModelCosts(model, made, Parallel(gpus, expert_parallel, data_parallel), memory_bytes_per_s=inf, **more)


def test_a_step_reads_every_weight_once_and_the_kv_once() -> None:
    """Unlimited arithmetic: what is left is bytes over bandwidth."""
    at = costs(DENSE, kernels(bytes_per_s=1e9))
    kv_bytes = 7000 * DENSE.kv_bytes_per_token
    assert at.iteration_s(3, 7000) == pytest.approx((2 * dense_weights(DENSE) + kv_bytes) / 1e9, rel=1e-12)
    assert costs(DENSE, at.kernels, overhead_s=0.5, request_s=0.25).iteration_s(3, 7000) == pytest.approx(at.iteration_s(3, 7000) + 1.25)


def test_a_prompt_costs_its_operations() -> None:
    """Unlimited memory: two operations a weight and token (of the lm_head: one token), and causal attention."""
    at, tokens = costs(DENSE, kernels(flops=1e12)), 300
    body = dense_weights(DENSE) - DENSE.vocabulary * DENSE.hidden
    attention = DENSE.layers * 4 * DENSE.heads * DENSE.head_dim * tokens**2 / 2
    assert at.iteration_s(0, 0, tokens) == pytest.approx((2 * body * tokens + attention + 2 * DENSE.vocabulary * 1024) / 1e12, rel=1e-12)
    one_by_one = at.iteration_s(0, 0, 100) + at.iteration_s(0, 0, 100, before=100) + at.iteration_s(0, 0, 100, before=200)
    assert one_by_one == pytest.approx(at.iteration_s(0, 0, tokens) + 2 * 2 * DENSE.vocabulary * 1024 / 1e12, rel=1e-12)


def test_two_gpus_share_the_weights_and_pay_for_all_reduces() -> None:
    alone, both = (costs(DENSE, kernels(bytes_per_s=1e9), gpus) for gpus in (1, 2))
    talking_s = DENSE.layers * 2 * (1e-5 + 5 * DENSE.hidden * 2 / 1e9)
    assert both.iteration_s(5, 900) == pytest.approx(alone.iteration_s(5, 900) / 2 + talking_s, rel=1e-12)


def test_few_tokens_need_few_experts_and_many_need_all() -> None:
    at = costs(EXPERTS, kernels(bytes_per_s=1e9), routing_skew=1.0)
    rest = dense_weights(replace(EXPERTS, inner=0)) + EXPERTS.layers * EXPERTS.hidden * EXPERTS.experts  # with the routers
    each = EXPERTS.layers * 3 * EXPERTS.hidden * EXPERTS.expert_inner
    for tokens, touched in ((1, 2.0), (2, 16 * (1 - (14 / 16) ** 2)), (10_000, 16.0)):
        assert at.iteration_s(tokens, 0) == pytest.approx(2 * (rest + touched * each) / 1e9, rel=1e-9)


def test_layers_with_a_window_stop_growing_at_it() -> None:
    at = costs(replace(DENSE, window=100, window_layers=3), kernels(bytes_per_s=1e9))
    within, beyond = (at.iteration_s(2, 2 * c + 200) - at.iteration_s(2, 2 * c) for c in (0, 500))
    assert within == pytest.approx(200 * DENSE.kv_bytes_per_token / 1e9)
    assert beyond == pytest.approx(within / 4)  # one layer of four sees all


def test_latent_attention_reads_the_latent_once_for_all_heads() -> None:
    at = costs(LATENT, kernels(bytes_per_s=1e9))
    assert at.iteration_s(1, 1000) - at.iteration_s(1, 0) == pytest.approx(1000 * LATENT.kv_bytes_per_token / 1e9)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (replace(DENSE, head_dim=64), "no attention of 64_bfloat16"),
        (replace(DENSE, dtype="float8_e4m3fn", weight_dtype="bfloat16"), "no attention of 128_float8_e4m3fn"),
        (replace(DENSE, weight_dtype="fp8_block"), "no GEMM of weights in fp8_block"),
        (replace(EXPERTS, experts=17), "no experts 1024x512x17x2_bfloat16"),
        (replace(DENSE, vocabulary=0), "needs hidden, heads, inner"),
    ],
)
def test_a_shape_without_measured_kernels_is_refused(model, message) -> None:
    with pytest.raises(ValueError, match=message):
        costs(model, kernels())


@pytest.mark.parametrize("model", [DENSE, EXPERTS, LATENT])
def test_the_profile_agrees_with_the_kernels(model, a_curve: RateCurve) -> None:
    """Exact at the knots, close between them, and the residual bounds the difference."""
    sheet = GpuSpec("gpu", 1e12, 1e9, 1e12, overhead_s=0.001, request_s=1e-4, kernels=kernels(1e12, 1e9, 1e-6))
    profile = profile_of(sheet, replace(model, parameters=1e6, active_parameters=1e6), (a_curve,))
    exact = ModelCosts(model, sheet.kernels, Parallel(), 1e9, 0.001, request_s=1e-4)
    decode, prefill = profile.fit("decode"), profile.fit("prefill")
    for batch, tokens in ((1, 16), (32, 512), (256, 16384)):
        assert decode.seconds(batch=batch, context=batch * 512) == pytest.approx(exact.iteration_s(batch, batch * 512), rel=1e-6)
        assert prefill.seconds(tokens=tokens) == pytest.approx(exact.iteration_s(0, 0, tokens), rel=1e-6)
    for batch, tokens in ((3, 40), (100, 3000)):
        assert decode.seconds(batch=batch, context=batch * 3000) == pytest.approx(exact.iteration_s(batch, batch * 3000), rel=0.03)
        assert prefill.seconds(tokens=tokens) == pytest.approx(exact.iteration_s(0, 0, tokens), rel=0.03)
    assert max(decode.residual, prefill.residual) < 0.03
    assert decode.covers(batch=100, context=50_000)
    assert not prefill.covers(tokens=20_000)


def test_the_experts_that_some_token_chooses_are_counted_as_the_urn_says() -> None:
    """Four experts, two for each token, no skew: a token misses an expert half the time, three tokens miss it one time in eight."""
    assert touched_experts(4, 2, 3, skew=1.0) == pytest.approx(4 * (1 - 1 / 8))
    deepseek = touched_experts(256, 8, 64, skew=1.0)  # DeepSeek-V3 at batch 64
    assert deepseek == pytest.approx(256 * (1 - (1 - 8 / 256) ** 64))
    assert 0.8 * 256 < deepseek < 0.9 * 256
    assert touched_experts(256, 8, 64, skew=30.0) < deepseek  # skewed routing chooses fewer


def test_skew_weighs_two_experts_by_hand() -> None:
    """Skew 3 over two experts, one for each token: they are chosen with 1/4 and 3/4."""
    assert touched_experts(2, 1, 2, skew=3.0) == pytest.approx((1 - (3 / 4) ** 2) + (1 - (1 / 4) ** 2))
    assert imbalance(256, 8, 1.0) == 1.0
    assert imbalance(256, 1, 30.0) == 1.0
    assert 1.0 < imbalance(256, 8, 10.0) < imbalance(256, 8, 30.0) < imbalance(256, 64, 30.0)


def test_a_pass_reads_the_experts_once_for_prompts_and_decoding() -> None:
    at = costs(EXPERTS, kernels(bytes_per_s=1e9))
    each = 2 * EXPERTS.layers * 3 * EXPERTS.hidden * EXPERTS.expert_inner * EXPERTS.experts / 1e9
    mixed, alone = at.iteration_s(10_000, 0, 10_000), at.iteration_s(10_000, 0) + at.iteration_s(0, 0, 10_000)
    assert alone - mixed >= each


def test_four_bit_weights_are_read_as_nine_sixteenths_of_a_byte() -> None:
    """NVFP4: 4 bits, and an 8-bit scale for 16 weights. The lm_head stays in 16 bits."""
    wide, narrow = (costs(replace(DENSE, weight_dtype=name), kernels(bytes_per_s=1e9)) for name in ("bfloat16", "nvfp4"))
    body = dense_weights(DENSE) - DENSE.vocabulary * DENSE.hidden
    assert wide.iteration_s(1, 0) - narrow.iteration_s(1, 0) == pytest.approx((2 - 9 / 16) * body / 1e9)


def test_expert_parallel_groups_hold_whole_experts_and_an_all_reduce_joins_them() -> None:
    made = kernels(bytes_per_s=1e9)
    both, halves = costs(EXPERTS, made, 2, expert_parallel=2, routing_skew=1.0), costs(EXPERTS, made, 2, routing_skew=1.0)
    assert both.iteration_s(3, 0) == pytest.approx(halves.iteration_s(3, 0))  # half the experts whole, or all of them halved


def test_attention_data_parallelism_halves_the_batch_and_pays_two_all_to_alls() -> None:
    """One of two groups decodes 4 of 8 requests. Each of its tokens goes to 2 (1 - (1/2)^2) = 1.5 groups, there and back."""
    made = kernels(bytes_per_s=inf)
    at = costs(EXPERTS, made, 2, expert_parallel=2, data_parallel=2)
    assert at.iteration_s(8, 800) == pytest.approx(EXPERTS.layers * 2 * (2e-5 + 4 * 1.5 * EXPERTS.hidden * 2 / 5e8))


def test_latent_layers_count_every_projection() -> None:
    """DeepSeek-V3 has 187 M weights in the attention of a layer on one GPU."""
    assert latent_projections(7168, 128, 1536, 576, 192, 128) == pytest.approx(7168 * 2112 + 1536 * 24576 + 512 * 32768 + 16384 * 7168)


GPU = GpuSpec("gpu", 1e15, 1e12, 100e9, compute_efficiency=1.0, memory_efficiency=1.0, overhead_s=0.0)


def test_the_latent_is_whole_on_every_gpu_and_heads_are_shared() -> None:
    """8 GPUs of 100 GB, a tenth reserved, 8 x 40 GB of weights: 50 GB are left on each."""
    gpu = replace(GPU, gpus=8)
    heads = ModelSpec("heads", 10, 4, 125, weight_bytes=320e9)  # 10 x 2 x 4 x 125 values of 2 bytes: 20 kB
    assert kv_tokens(gpu, heads) == int(50e9 / (20e3 / 4))  # four heads, each on two GPUs
    latent = ModelSpec("latent", 10, 1, 1000, kv_kinds=1, weight_bytes=320e9)
    assert kv_tokens(gpu, latent) == int(50e9 / 20e3)
    assert kv_tokens(replace(gpu, kv_tokens=1234), latent) == 1234  # as measured


def test_windows_count_in_memory_as_they_do_on_the_wire() -> None:
    model = ModelSpec("windows", 4, 1, 100, window=100, window_layers=2, layer_windows=(0, 100, 0, 100), weight_bytes=0.0, parameters=0.0)
    of_8192 = 2 * 2 * 100 * (2 * 8192 + 2 * 100) / 8192  # bytes for each token of a sequence of that length
    assert kv_tokens(GPU, model) == int(90e9 // of_8192)


def test_the_roofline_sends_two_all_reduces_a_layer() -> None:
    """n = 4: each GPU sends 2 x 3/4 of the tensor."""
    model = ModelSpec("dense", 10, 4, 8, hidden=1000, heads=8, parameters=1.0, active_parameters=1.0)
    gpu = replace(GPU, gpus=4, link_bytes_per_s=1e9, link_call_s=1e-5)
    silent_s = SheetCosts(replace(gpu, link_bytes_per_s=0.0), model).pass_s(7)
    assert SheetCosts(gpu, model).pass_s(7) - silent_s == pytest.approx(2 * 10 * (1e-5 + 1.5 * 7 * 1000 * 2 / 1e9))


def test_the_roofline_reads_the_experts_that_are_chosen() -> None:
    """DeepSeek-V3's routed experts at batch 64: 87 % of 654 GB, not the 8 of 256 that one token needs."""
    model = ModelSpec(
        "v3", 61, 1, 576, kv_kinds=1, hidden=7168, heads=128, parameters=671e9, active_parameters=37e9, experts=256, experts_active=8,
        expert_inner=2048, dense_layers=3, weight_dtype="fp8_block",
    )  # fmt: skip
    gpu = replace(GPU, memory_bytes_per_s=1e9, routing_skew=1.0)
    routed = 3 * 58 * 256 * 7168 * 2048
    dense = 37e9 - routed * 8 / 256
    read = (dense + routed * (1 - (1 - 8 / 256) ** 64)) * (1 + 4 / 128**2)
    assert SheetCosts(gpu, model).pass_s(64) == pytest.approx(read / 1e9, rel=1e-6)
    assert 560e9 < read < 620e9


def test_eight_bit_weights_use_the_eight_bit_units() -> None:
    model = ModelSpec("dense", 2, 1, 8, hidden=10, heads=1, parameters=1e9, active_parameters=1e9, weight_dtype="float8_e4m3fn")
    gpu = replace(GPU, fp8_flops=4e15)
    assert SheetCosts(gpu, model).pass_s(100_000) == pytest.approx(2e14 / 4e15)
    assert SheetCosts(GPU, model).pass_s(100_000) == pytest.approx(2e14 / 1e15)


def test_speculation_divides_a_step_by_the_tokens_that_it_yields(a_curve: RateCurve) -> None:
    """Bound by memory, a step for 4 tokens takes as long as one for 1; 1.5 of 3 drafted tokens are accepted; drafting takes a tenth."""
    model = ModelSpec("dense", 2, 1, 8, hidden=10, heads=1, parameters=1e9, active_parameters=1e9)
    gpu = replace(GPU, memory_bytes_per_s=1e9)
    plain = profile_of(gpu, model, (a_curve,)).fit("decode").seconds(batch=8, context=0)
    fast = profile_of(replace(gpu, speculation=Speculation(3, 1.5, 0.1)), model, (a_curve,)).fit("decode").seconds(batch=8, context=0)
    assert fast == pytest.approx(plain * 1.1 / 2.5)
    with pytest.raises(ValueError, match="at most draft_tokens, 3"):
        Speculation(3, 4.0)


@pytest.fixture(scope="module")
def a_curve() -> RateCurve:
    from abkt.policy.view import Curve

    curve = Curve((0.1, 0.5), (0.5, 0.001), (1.0, 8.0))
    return RateCurve(128, curve, curve)
