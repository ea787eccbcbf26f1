"""Costs from kernels, against the bytes and operations of the whole model."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from abkt.profile.kernels import AllReduce, DecodeKernel, GpuKernels, Kernel, ModelCosts, experts_key
from abkt.profile.roofline import GpuSpec, profile_of
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
        gemm=one,
        prefill_attention={128: one},
        decode_attention={128: DecodeKernel(launch_s, bytes_per_s, 0.0, 0.0, 1)},
        latent_prefill=one,
        latent_decode=one,
        all_reduce={2: AllReduce(1e-5, 1e9, 0.0, 1)},
        experts={experts_key(EXPERTS): one},
    )


def costs(model: ModelSpec, made: GpuKernels, gpus: int = 1, **overhead: float) -> ModelCosts:
    return ModelCosts(model, made, gpus, memory_bytes_per_s=inf, **overhead)


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
    at = costs(EXPERTS, kernels(bytes_per_s=1e9))
    rest = dense_weights(replace(EXPERTS, inner=0))
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
        (replace(DENSE, head_dim=64), "no attention of head_dim 64"),
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
    exact = ModelCosts(model, sheet.kernels, 1, 1e9, 0.001, 1e-4)
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


@pytest.fixture(scope="module")
def a_curve() -> RateCurve:
    from abkt.policy.view import Curve

    curve = Curve((0.1, 0.5), (0.5, 0.001), (1.0, 8.0))
    return RateCurve(128, curve, curve)
