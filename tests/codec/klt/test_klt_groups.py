"""Heads that are transformed together: half the bits where two say the same, and groups of layers stay whole."""

import numpy as np
import pytest
import torch

from abkt.codec.codec import Codec
from abkt.codec.klt.basis import basis_of as read_basis
from abkt.codec.klt.rotary import AS_CACHED, Rotary
from abkt.kv.pool import Pool
from abkt.spec import KVLayout, ModelSpec

PAIRS = np.array([[[0], [0]], [[1], [1]], [[2], [2]]], np.int16)  # K and V of each layer
CHAINED = np.array([[[0], [0]], [[0], [0]], [[1], [1]]], np.int16)  # of layers 0 and 1, and of layer 2
APART = np.array([[[0], [0]], [[1], [1]], [[0], [0]]], np.int16)  # of layers 0 and 2, and of layer 1


def layered(**more) -> KVLayout:
    return KVLayout(ModelSpec("layered", layers=3, kv_heads=1, head_dim=16, dtype="float32", **more), 24, 4)


def test_two_heads_that_say_the_same_need_half_the_bits_together(basis_of, calibration_of):
    """Solved by hand: 16 coefficients of variance 2 have the same error as 32 of variance 1 at a step that is sqrt(2) as large. So each
    needs the same bits, and all of them half. In the mean over many errors, because a stream has few cuts."""
    tokens, dim = 1024, 16
    layout = KVLayout(ModelSpec("twins", layers=1, kv_heads=2, head_dim=dim, dtype="float32"), tokens // 4, 4)
    pool, table = Pool(layout), list(range(tokens // 4))
    x = torch.randn(tokens // 4, 1, 2, 1, 4, dim, generator=torch.Generator().manual_seed(0))
    pool.data.copy_(x.expand(-1, -1, -1, 2, -1, -1))
    eye = np.eye(dim)
    together = np.block([[eye, eye], [eye, -eye]]) / np.sqrt(2)
    rotary = Rotary(torch.full((1,), AS_CACHED, dtype=torch.uint8), torch.zeros(1, 1))
    same = {
        "unit": np.ones((1, 2, 2), np.float32), "mean": np.zeros((1, 2, 2, dim), np.float32), "rotary": rotary, "step": 0.5,
        "first": np.zeros((1, 2, 2, 4), np.int16),
    }  # fmt: skip
    bytes_at = {}
    for name, groups, matrix, of_heads in (
        ("alone", [[[0, 1], [2, 3]]], np.concatenate([eye] * 4), (1.0, 1.0)),
        ("together", [[[0, 0], [1, 1]]], np.concatenate([together] * 2), (np.sqrt(2), 1e-3)),
    ):
        deviation = np.array(of_heads, np.float32)[None, None, :, None].repeat(2, 1).repeat(dim, 3)
        made = basis_of(layout, groups=np.array(groups, np.int16), matrices=matrix.astype(np.float16).ravel(), deviation=deviation, **same)
        stream = Codec(layout, calibration=calibration_of(layout, made)).encode(pool, table, tokens, coder="klt")
        left, ends = np.array(stream.curve.distortion), np.array(stream.ends) - stream.ends[0]
        bytes_at[name] = np.interp(np.log(np.geomspace(1e-1, 1e-4, 50)), np.log(left[::-1]), ends[::-1]).mean()
    assert bytes_at["together"] / bytes_at["alone"] == pytest.approx(0.5, abs=0.04)


def test_a_group_of_layers_is_whole(basis_of):
    layout = layered()
    assert basis_of(layout, groups=PAIRS).ends() == (1, 2, 3)
    assert basis_of(layout, groups=CHAINED).ends() == (2, 3)
    assert basis_of(layout, groups=APART).ends() == (3,)
    part = basis_of(layout, groups=CHAINED).part(2, 3)
    assert part.groups.tolist() == [[[0], [0]]]
    assert torch.equal(part.matrix(0)[0], basis_of(layout, groups=CHAINED).matrix(1)[0])
    for groups, first, stop in ((CHAINED, 0, 1), (CHAINED, 1, 3), (APART, 0, 2)):
        with pytest.raises(ValueError, match=f"layers {first} to {stop} divide one"):
            basis_of(layout, groups=groups).part(first, stop)


def test_layers_of_different_windows_are_refused_in_one_group(basis_of, calibration_of):
    windowed = layered(window=8, window_layers=1, layer_windows=(8, 0, 0))
    with pytest.raises(ValueError, match=r"a group of layers whose windows differ in model layered: \(8, 0, 0\)"):
        Codec(windowed, calibration=calibration_of(windowed, basis_of(windowed, groups=CHAINED)))
    Codec(windowed, calibration=calibration_of(windowed, basis_of(windowed, groups=PAIRS)))


@pytest.mark.parametrize("groups", [PAIRS, CHAINED, APART])
def test_windowed_cells_that_are_left_out_leave_the_other_layers_whole(basis_of, calibration_of, filled_pool, table_of, groups):
    layout = layered(window=8, window_layers=2, layer_windows=(8, 0, 8)) if groups is APART else layered()
    codec = Codec(layout, calibration=calibration_of(layout, basis_of(layout, groups=groups)), cut_windows=True)
    pool, table = filled_pool(layout), table_of(layout, 90)
    out = Pool(layout)
    stream = codec.encode(pool, table, 90, coder="klt")
    codec.expand(stream.prefix(-1), out, table)
    for layer in range(3):
        for x, y in zip(pool.read(table, layer, 90), out.read(table, layer, 90), strict=True):
            assert (x - y)[:, -7:].square().sum() < 1e-2 * (x - x.mean(1, keepdim=True))[:, -7:].square().sum()


def test_a_basis_of_the_earlier_version_and_one_without_an_inverse_are_refused(basis_of):
    layout = layered()
    arrays = basis_of(layout).arrays()
    old = {**arrays, "forward": np.zeros((3, 2, 1, 16, 16), np.float32)}
    del old["matrices"]
    with pytest.raises(ValueError, match="of an earlier version, which transformed each head by itself; calibrate again"):
        read_basis(old)
    with pytest.raises(ValueError, match="the matrix of group 0 has no inverse"):
        read_basis({**arrays, "matrices": np.zeros_like(arrays["matrices"])}).matrix(0)
