"""The codecs that calibrate: one list of them, and every law on each. Also rotations, RoPE and the lossless codes, against plain sums."""

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2
from scipy.stats import norm

from abkt.codec.baselines import LOSSLESS, Uniform
from abkt.codec.baselines.base import FRAME_BYTES
from abkt.codec.baselines.calibrated import cachegen, kvquant, kvtc, kvtuner, matter
from abkt.codec.baselines.calibrated.kv import CalibrationKV, load
from abkt.codec.baselines.hadamard import Hadamard
from abkt.codec.baselines.layerwise import losses
from abkt.codec.baselines.rope import Rope
from abkt.codec.baselines.rotation import rotation
from abkt.codec.baselines.turboquant import TurboQuant, lloyd_max
from abkt.kv.pool import Pool

LAYERS, HEADS, DIM, TOKENS = 3, 2, 32, 200
ROPE = Rope((10_000.0, 10_000.0, 1_000_000.0))

FAMILIES = {
    "kvquant": lambda c: [kvquant.fit(c, bits) for bits in (2, 3, 4)],
    "kvtc": lambda c: kvtc.fit(c, (2.0, 0.5, 0.1)),
    "kvtc-best": lambda c: kvtc.fit(c, (2.0, 0.5, 0.1), weighted=True, window=16),
    "kvtuner": lambda c: [kvtuner.fit(c, bits) for bits in (2.5, 4.0, 6.0)],
    "matter": lambda c: [matter.fit(c, share) for share in (0.3, 0.6, 1.0)],
    "cachegen-widths": lambda c: [cachegen.fit(c, coarse) for coarse in (2.0, 1.0, 0.5)],
    "turboquant": lambda c: [TurboQuant(f"t{bits}", bits) for bits in (2, 3, 4)],
    "hadamard": lambda c: [Hadamard(f"h{bits}", bits) for bits in (2, 3, 4)],
}
"""Every family, coarse to fine."""


def kv_of(seed, tokens=TOKENS):
    """KV with a constant in some key channels before RoPE, correlated channels, and heads of different scale."""
    fixed, draw = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    mix = torch.randn(LAYERS, 2, HEADS, 1, DIM, DIM, generator=fixed) / DIM**0.5
    scale = torch.randn(LAYERS, 2, HEADS, 1, 1, generator=fixed).exp()
    mean = torch.randn(LAYERS, 2, HEADS, 1, DIM, generator=fixed) * torch.tensor([3.0, 0.1]).view(1, 2, 1, 1, 1)
    x = ((torch.randn(LAYERS, 2, HEADS, tokens, 1, DIM, generator=draw) @ mix)[..., 0, :] + mean) * scale
    return torch.stack((ROPE.done(x[:, 0]), x[:, 1]), 1)


@pytest.fixture(scope="module")
def calibration():
    spread = torch.logspace(-2, 2, LAYERS * 2 * HEADS).view(LAYERS, 2, HEADS, 1, 1)
    return CalibrationKV(tuple(kv_of(seed) for seed in (1, 2, 3)), ROPE, torch.eye(DIM) * spread)


@pytest.fixture(scope="module")
def fitted(calibration):
    return {name: make(calibration) for name, make in FAMILIES.items()}


@pytest.fixture(scope="module")
def sample(layout_of, table_of):
    layout = layout_of(LAYERS, HEADS, DIM, dtype="float32")
    pool, table = Pool(layout), table_of(layout, TOKENS)
    for layer, (keys, values) in enumerate(kv_of(9)):
        pool.write(table, layer, 0, keys, values)
    return pool, table


def passed(codec, pool, table, tokens=TOKENS):
    """(KV before, KV after, the message's bytes)"""
    data = codec.encode(pool, table, tokens)
    other = Pool(pool.layout)
    codec.expand(data, other, table)
    before, after = (torch.stack([torch.stack(p.read(table, layer, tokens)) for layer in range(LAYERS)]) for p in (pool, other))
    return before, after, len(data)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_finer_rate_takes_more_bytes_and_costs_less(name, fitted, calibration, sample):
    sizes, costs = [], []
    for codec in fitted[name]:
        before, after, size = passed(codec, *sample)
        sizes.append(size)
        costs.append(float(((before - after).square().mean((3, 4)) * calibration.of_heads).sum()))
    assert sizes == sorted(sizes)
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.2 * costs[0]
    assert sizes[-1] < TOKENS * LAYERS * 2 * HEADS * DIM * 4, "fewer than raw"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tokens", [0, 1, 5, 31, 129, 161])
def test_any_length_passes_and_the_first_token_is_near(name, tokens, fitted, sample):
    before, after, size = passed(fitted[name][-1], *sample, tokens)
    assert size >= FRAME_BYTES
    if tokens:
        assert after.isfinite().all()
        assert (after - before)[..., 0, :].square().mean() < 0.2 * before[..., 0, :].square().mean()


@pytest.mark.parametrize("name", FAMILIES)
def test_bad_kv_and_damage_are_refused_and_write_nothing(name, fitted, sample, layout_of):
    codec, (pool, table) = fitted[name][1], sample
    bad = Pool(pool.layout)
    bad.data.copy_(pool.data)
    bad.data[table[3], 0, 1, 0, 3, 5] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        codec.encode(bad, table, TOKENS)
    message = codec.encode(pool, table, TOKENS)
    out = Pool(pool.layout)
    for broken in (message[:-1], message[:40], message[:60] + bytes([message[60] ^ 1]) + message[61:]):
        with pytest.raises(ValueError, match="message"):
            codec.expand(broken, out, table)
    with pytest.raises(ValueError, match="layout"):
        codec.expand(message, Pool(layout_of(LAYERS, HEADS, 64, dtype="float32")), table)
    assert not out.data.any()


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"turboquant", "hadamard"}))
def test_kv_of_another_model_is_refused(name, fitted, layout_of, filled_pool, table_of):
    layout = layout_of(LAYERS + 1, HEADS, DIM, dtype="float32")
    with pytest.raises(ValueError, match="does not fit"):
        fitted[name][0].encode(filled_pool(layout), table_of(layout, 64), 64)


def test_calibration_that_cannot_be_used_is_refused(tmp_path):
    x, fisher = kv_of(1), torch.eye(DIM).expand(LAYERS, 2, HEADS, DIM, DIM)
    broken = x.clone()
    broken[0, 0, 0, 0, 0] = float("inf")
    for kv, of, said in (
        ((), fisher, "at least one"),
        ((x,), fisher[:1], "does not fit"),
        ((broken,), fisher, "not finite"),
        ((x[:, :1],), fisher, "is not"),
    ):
        with pytest.raises(ValueError, match=said):
            CalibrationKV(kv, ROPE, of)
    whole = CalibrationKV((x, kv_of(2)), ROPE, fisher)
    whole.save(tmp_path / "c.safetensors")
    again = load(tmp_path / "c.safetensors")
    assert torch.equal(again.kv[1], whole.kv[1])
    assert again.rope == whole.rope
    (tmp_path / "d.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="no KV of calibration"):
        load(tmp_path / "d.safetensors")


def test_rope_turns_each_pair_by_its_angle_and_back():
    x = kv_of(4)[:, 0]
    turned = ROPE.done(ROPE.undone(x))
    torch.testing.assert_close(turned, x, rtol=1e-5, atol=1e-5)
    plain = torch.zeros(LAYERS, 1, 8, DIM)
    plain[..., 3] = 1.0
    angle = 7 * 1_000_000.0 ** (-2 * 3 / DIM)
    found = ROPE.done(plain)[2, 0, 7]
    assert float(found[3]) == pytest.approx(np.cos(angle), abs=1e-6)
    assert float(found[3 + DIM // 2]) == pytest.approx(np.sin(angle), abs=1e-6)


@pytest.mark.parametrize("dim", [64, 96, 256])
def test_a_rotation_keeps_lengths_and_spreads_one_channel(dim):
    q = rotation(dim)
    torch.testing.assert_close(q @ q.T, torch.eye(dim), rtol=1e-5, atol=1e-5)
    assert float(q[:, 0].abs().max()) == pytest.approx((dim & -dim) ** -0.5)


def test_lloyd_max_points_are_the_known_ones_of_a_normal_variable():
    np.testing.assert_allclose(lloyd_max(1), [-((2 / np.pi) ** 0.5), (2 / np.pi) ** 0.5], atol=1e-4)
    np.testing.assert_allclose(lloyd_max(2), [-1.510, -0.4528, 0.4528, 1.510], atol=1e-3)  # Max 1960, table I
    points = lloyd_max(4).double().numpy()
    edges = np.r_[-np.inf, (points[1:] + points[:-1]) / 2, np.inf]
    np.testing.assert_allclose(points, -np.diff(norm.pdf(edges)) / np.diff(norm.cdf(edges)), atol=2e-3)


def test_turboquant_takes_its_bits_and_a_length(sample):
    _, _, size = passed(TurboQuant("t", 3), *sample)
    values = LAYERS * 2 * HEADS * TOKENS * DIM
    assert size - FRAME_BYTES == values * 3 // 8 + values // DIM * 2


def test_kvquant_takes_its_bits_and_about_the_papers_share_of_outliers(calibration, sample):
    _, _, size = passed(kvquant.fit(calibration, 3), *sample)
    rows = LAYERS * 2 * (TOKENS - 1)
    outliers = (size - FRAME_BYTES - LAYERS * 2 * HEADS * DIM * 2 - rows * HEADS * DIM * 3 // 8 - LAYERS * (TOKENS - 1) * 4 - rows * 4) / 4
    of_v = LAYERS * (TOKENS - 1) * 2  # one on each side of 64 values
    of_k = outliers - of_v
    assert 0.004 < of_k / (rows / 2 * HEADS * DIM) < 0.03


def test_a_codebook_is_that_of_k_means():
    values = torch.randn(4000, generator=torch.Generator().manual_seed(3))
    found = kvquant.codebook(values, torch.ones(4000), 2)
    theirs = np.sort(kmeans2(values.numpy()[:, None].astype(float), found.numpy()[:, None].astype(float), minit="matrix")[0][:, 0])
    np.testing.assert_allclose(found, theirs, atol=0.03)
    heavy = kvquant.codebook(values, torch.where(values > 1, 100.0, 1.0), 2)
    assert (heavy > 1).sum() > (found > 1).sum()


def test_an_allocation_is_the_best_of_all():
    rng = np.random.default_rng(0)
    cost = torch.from_numpy(np.sort(rng.exponential(size=(3, 6)), 0)[::-1].copy())
    bits = torch.tensor((2.0, 4.0, 8.0), dtype=torch.float64)
    chosen = kvtuner.allocated(cost, bits, 4.0)
    mean = float(bits[chosen].mean())
    every = np.stack(np.meshgrid(*[range(3)] * 6, indexing="ij"), -1).reshape(-1, 6)
    within = every[bits.numpy()[every].mean(1) <= mean]
    least = cost.numpy()[within, np.arange(6)].sum(1).min()
    assert mean <= 4.0
    assert float(cost[chosen, torch.arange(6)].sum()) == pytest.approx(least)
    with pytest.raises(ValueError, match="cannot be reached"):
        kvtuner.allocated(cost, bits, 1.0)


def test_the_heads_that_matter_are_those_whose_loss_is_greatest(calibration):
    codec = matter.fit(calibration, 0.5)
    of_means = sum(losses(x, calibration.of_heads, 0) for x in calibration.kv).flatten()
    kept = torch.tensor(codec.bits).flatten() > 0
    assert int(kept.sum()) == 6
    assert of_means[kept].min() > of_means[~kept].max()


@pytest.mark.parametrize("codec", LOSSLESS, ids=lambda c: c.name)
@pytest.mark.parametrize("tokens", [0, 1, 161])
def test_a_lossless_code_gives_back_every_bit(codec, tokens, layout_of, filled_pool, table_of):
    layout = layout_of(2, 2, 64, dtype="bfloat16")
    pool, table = filled_pool(layout), table_of(layout, tokens)
    if tokens:
        pool.data[table[0], 0, 0, 0, 0, :4] = torch.tensor([float("nan"), float("-inf"), -0.0, 1e-40])
    out = Pool(layout)
    data = codec.encode(pool, table, tokens)
    codec.expand(data, out, table)
    for layer in range(2):
        for a, b in zip(pool.read(table, layer, tokens), out.read(table, layer, tokens), strict=True):
            assert torch.equal(a.view(torch.int16), b.view(torch.int16))
    if tokens < 161:
        return
    assert 0.6 < len(data) / (2 * 2 * 2 * 64 * 161 * 2) < 0.85
    with pytest.raises(ValueError, match="bfloat16 only"):
        codec.encode(filled_pool(layout_of(2, 2, 64, dtype="float32")), table, 16)
    with pytest.raises(ValueError, match="is not for"):
        Uniform("u", 4).expand(data, out, table)
