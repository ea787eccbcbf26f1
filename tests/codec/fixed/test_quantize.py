"""The quantiser: prefixes, error bounds and packing, checked against independent arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.codec.cells import BITS, PASSES, WIDTHS
from abkt.codec.fixed import quantize as q

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
finite = st.floats(-1e4, 1e4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)


@st.composite
def cells(draw):
    tokens, dim = draw(shapes)
    if draw(st.booleans()):
        values = torch.tensor(draw(st.lists(finite, min_size=tokens * dim, max_size=tokens * dim))).view(tokens, dim)
    else:
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
        values = torch.randn(tokens, dim, generator=generator) * 10 ** draw(st.floats(-6, 6))
        values += 10 ** draw(st.floats(-3, 5)) * torch.randn(1, dim, generator=generator)
    return values.to(draw(st.sampled_from([torch.bfloat16, torch.float32])))


@given(cells(), st.sampled_from([-2, -1]))
@settings(max_examples=60, deadline=None)
def test_the_error_is_within_half_a_bin_and_the_shift_to_the_mean(x, dim):
    coded = q.quantize(x.float(), dim, x.dtype)
    span = x.float().amax(dim, keepdim=True) - x.float().amin(dim, keepdim=True)
    wider = span + (x.float().amin(dim, keepdim=True).abs() / 64 if dim == -1 else 0)  # the offset of V is rounded down
    assert (coded.step <= (wider / 256 * (1 + 1 / 16 + 1e-6)).clamp_min(q.MIN_STEP)).all(), "a step larger than its rounding allows"
    for passes, bits in enumerate(BITS[1:], start=1):
        decoded = q.reconstruct(coded, passes)
        moved = q.SHARES[int(coded.spread)][passes] / 32 * 256  # the middle of no bin is farther from the mean
        bound = coded.step * (2 ** (7 - bits) + moved) + 2.0**-22 * x.float().abs() + 2e-7 * span  # plus the rounding of float32
        assert ((x.float() - decoded).abs() <= bound).all()
    assert (coded.low <= x.float()).all()
    constant = ((span == 0) & (coded.step == 0)).expand(x.shape)
    assert dim == -1 or torch.equal(constant, (span == 0).expand(x.shape))
    assert torch.equal(q.reconstruct(coded, 0)[constant], x.float()[constant] + 0.0)


@given(cells(), st.sampled_from([-2, -1]))
@settings(max_examples=40, deadline=None)
def test_zero_bits_give_the_mean_to_a_sixteenth_of_the_range(x, dim):
    coded = q.quantize(x.float(), dim, x.dtype)
    mean = x.double().mean(dim, keepdim=True)
    off = (q.reconstruct(coded, 0).double() - mean).abs()
    assert (off <= coded.step.double() * (8 + 0.5 + 1e-3) + x.double().abs().amax() * 1e-6).all()


@given(cells(), st.sampled_from([-2, -1]), st.sampled_from(BITS[1:-1]))
@settings(max_examples=40, deadline=None)
def test_the_top_bits_are_the_coarser_code(x, dim, bits):
    coded = q.quantize(x.float(), dim, x.dtype)
    rest = torch.randint(0, 2 ** (8 - bits), coded.codes.shape, dtype=torch.uint8)  # whatever the later passes hold
    other = q.Quantized((coded.codes >> (8 - bits) << (8 - bits)) | rest, coded.low, coded.step, coded.mean, coded.spread)
    assert torch.equal(q.reconstruct(coded, PASSES[bits]), q.reconstruct(other, PASSES[bits]))


@given(shapes, st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_packing_can_be_inverted_and_fills_the_bytes(shape, seed):
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    tokens, dim = shape
    together = torch.zeros_like(codes)
    for index, width in enumerate(WIDTHS, start=1):
        packed = q.pack_pass(codes, index)
        assert packed.numel() == -(-tokens // 8) * dim * width
        together |= q.unpack_pass(packed, index, tokens)
    assert torch.equal(together, codes)


def test_bits_are_packed_into_a_byte_as_worked_out_by_hand():
    codes = torch.tensor([[0b10_01_1100], [0b11_00_0011], [0b00_10_1010], [0b01_11_0101]] + [[0]] * 3 + [[0b10_00_0010]], dtype=torch.uint8)
    assert q.pack_pass(codes, 1).tolist() == [[0b1_000_0011]], "the top bit of tokens 7 to 0"
    assert q.pack_pass(codes, 2).tolist() == [[0b0_000_1010]]
    assert q.pack_pass(codes, 5).tolist() == [[0b01_10_00_11], [0]], "bits 3 and 2 of tokens 3 to 0, then of 7 to 4"
    assert q.pack_pass(codes, 6).tolist() == [[0b01_10_11_00], [0b10_00_00_00]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dim", [-2, -1])
def test_metadata_takes_32_bits_per_group_and_can_be_inverted(dtype, dim):
    x = (torch.randn(3, 24, 20) * 3).to(dtype)
    coded = q.quantize(x.float(), dim, x.dtype)
    packed = q.pack_metadata(coded, dim, dtype)
    groups = 20 if dim == -2 else 24
    assert packed.shape == (3, groups * (dtype.itemsize + 2))
    low, step, mean = q.unpack_metadata(packed, dim, dtype)
    assert torch.equal(low, coded.low)
    assert torch.equal(step, coded.step)
    assert torch.equal(mean, coded.mean)


def test_a_large_bias_on_one_channel_does_not_change_the_error_of_the_others():
    x = torch.randn(128, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    biased = x.clone()
    biased[:, 5] = (x[:, 5].float() + 100).to(torch.bfloat16)
    plain, shifted = (q.quantize(y.float(), -2, y.dtype) for y in (x, biased))
    assert torch.equal(plain.spread, shifted.spread)
    for passes in range(len(BITS)):
        a, b = q.reconstruct(plain, passes).bfloat16(), q.reconstruct(shifted, passes).bfloat16()
        others = [c for c in range(64) if c != 5]
        assert torch.equal(a[:, others], b[:, others])
    off = (q.reconstruct(shifted, PASSES[8]).bfloat16() - biased)[:, 5].float().abs()
    assert (off <= 0.25 + shifted.step[0, 5] / 2).all(), "more than the rounding of bfloat16 at 100"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 2.0**48])
def test_cells_that_cannot_be_coded_are_found(bad):
    x = torch.randn(2, 3, 16, 8)
    assert not q.travels_verbatim(x, torch.float32).any()
    x[1, 2, 15, 7] = bad
    assert q.travels_verbatim(x, torch.float32).tolist() == [[False] * 3, [False, False, True]]
    half = torch.full((1, 4, 4), 16384.0)
    assert q.travels_verbatim(half, torch.float16).all(), "less a centre of -16384, its offset would come near the end of float16"


def test_uniform_noise_has_the_error_that_theory_gives():
    x = torch.rand(1, 4096, 16, generator=torch.Generator().manual_seed(0))
    coded = q.quantize(x, -2, x.dtype)
    errors = q.squared_errors(x, coded, torch.zeros(1), PASSES[8])[0].sum(0).numpy()
    step = coded.step.double().numpy().reshape(-1)
    for index, bits in enumerate(BITS[1:], 1):
        expected = 4096 * np.sum((step * 2 ** (8 - bits)) ** 2) / 12
        assert abs(errors[index] / expected - 1) < (0.15 if bits <= 2 else 0.03)  # the last of few bins is only part filled


def best_uniform(x: torch.Tensor, dim: int, bits: int) -> float:
    """Squared error of the best uniform quantiser of each cell: one factor on all its groups' ranges, around their middle or their mean,
    with codes in the middle of bins or at the ends of the range, offsets and steps in full precision."""
    low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
    levels, best = 2**bits, torch.full(x.shape[:-2], torch.inf)
    for around in ((low + high) / 2, x.mean(dim, keepdim=True)):
        for factor in np.arange(0.15, 1.35, 0.05):
            half = (high - low) / 2 * factor
            middles = around - half + (((x - around + half) / (2 * half) * levels).floor().clamp(0, levels - 1) + 0.5) * 2 * half / levels
            steps = max(levels - 1, 1)
            ends = around - half + ((x - around + half) / (2 * half) * steps).round().clamp(0, steps) * 2 * half / steps
            for y in (middles, ends):
                best = torch.minimum(best, (x - y).square().sum((-2, -1)))
    return float(best.sum())


def normal_cells(cells: int, tokens: int, dim: int) -> torch.Tensor:
    return torch.randn(cells, tokens, dim, generator=torch.Generator().manual_seed(3))


def outlier_cells(cells: int, tokens: int, dim: int) -> torch.Tensor:
    spread = (0.5 * torch.randn(cells, 1, dim, generator=torch.Generator().manual_seed(4))).exp()
    spread[..., :2] *= 6
    return normal_cells(cells, tokens, dim) * spread + 4 * spread


def laplace_cells(cells: int, tokens: int, dim: int) -> torch.Tensor:
    sign_and_size = torch.rand(cells, tokens, dim, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return -sign_and_size.sign() * (1 - sign_and_size.abs()).clamp_min(1e-7).log()


def uniform_cells(cells: int, tokens: int, dim: int) -> torch.Tensor:
    return torch.rand(cells, tokens, dim, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("make", [normal_cells, outlier_cells, laplace_cells, uniform_cells])
@pytest.mark.parametrize("dim", [-2, -1])
def test_the_error_is_within_a_tenth_of_the_best_uniform_quantisers(make, dim):
    """At a stream's depth, with metadata of 32 bits a group. At 1 bit, V with two channels six times wider is within a quarter."""
    x = make(4, 128, 128)
    x = x - x.mean(-2, keepdim=True) if dim == -1 else x
    for bits in BITS[1:-1]:
        coded = q.quantize(x, dim, torch.float32, depth_bits=bits)
        ours = float(q.squared_errors(x, coded, torch.zeros(1), PASSES[bits])[..., -1].sum())
        allowed = 1.25 if make is outlier_cells and dim == -1 and bits == 1 else 1.1
        assert ours <= allowed * best_uniform(x, dim, bits), bits


@pytest.mark.parametrize("make", [normal_cells, laplace_cells, uniform_cells])
def test_an_embedded_code_takes_at_most_a_twentieth_more_bytes(make):
    """A prefix of the deepest code is compared with a code made for its depth. 6.02 dB of error count as one bit a value."""
    x = make(4, 128, 128)
    deep = q.quantize(x, -2, torch.float32)
    left = q.squared_errors(x, deep, torch.zeros(1), PASSES[8]).sum((0, 1))
    for bits in BITS[1:-1]:
        coded = q.quantize(x, -2, torch.float32, depth_bits=bits)
        alone = q.squared_errors(x, coded, torch.zeros(1), PASSES[bits]).sum((0, 1))[-1]
        extra_bits = 0.5 * np.log2(float(left[PASSES[bits]] / alone))
        assert extra_bits <= 0.05 * (bits + 0.25)
