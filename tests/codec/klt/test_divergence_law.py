"""Divergence laws: what a calibration holds, what streams then state, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from abkt.codec.calibration import load
from abkt.codec.codec import Codec
from abkt.codec.divergence import DivergenceLaw
from abkt.kv.pool import Pool
from abkt.serve.worker.layered import LayerGroup
from abkt.spec import KVLayout, ModelSpec
from experiments.quality.divergence import fit
from tests.codec.klt.conftest import make_basis, make_calibration

LAYOUT = KVLayout(ModelSpec("m", layers=2, kv_heads=2, head_dim=32, dtype="float32"), 8)
LAWS = {"fixed": DivergenceLaw(3.0, 1.5, 1.2), "entropy": DivergenceLaw(2.0, 1.25, 1.3)}
TABLE = list(range(8))


@pytest.fixture(scope="module")
def pool() -> Pool:
    made = Pool(LAYOUT)
    made.data.copy_(torch.randn(made.data.shape, generator=torch.Generator().manual_seed(0)))
    return made


def test_streams_state_the_law_of_their_squared_error_and_keep_its_bytes_and_order(pool: Pool) -> None:
    calibration = make_calibration(LAYOUT, make_basis(LAYOUT))
    plain, told = Codec(LAYOUT, calibration=calibration), Codec(LAYOUT, calibration=replace(calibration, laws=LAWS))
    for coder, law in LAWS.items():
        a, b = (codec.encode(pool, TABLE, 128, coder=coder) for codec in (plain, told))
        for one, other in ((a.slope, b.slope), (a.uniform, b.uniform)):
            assert other.bytes == one.bytes
            assert other.distortion == pytest.approx([law.scale * d**law.exponent for d in one.distortion])
        assert told.expand(b.prefix(3), Pool(LAYOUT), TABLE).distortion == pytest.approx(b.slope.distortion[3], rel=1e-6)
        assert b.reordered(None, "uniform").curve == b.uniform
    assert told.encode(pool, TABLE, 128, coder="klt").slope == plain.encode(pool, TABLE, 128, coder="klt").slope


def test_groups_of_layers_state_what_the_whole_states(pool: Pool) -> None:
    """The mean over groups of equal size, all sent whole, is the divergence of the whole."""
    from abkt.codec.importance import Importance
    from abkt.policy.view import Decision

    codec = Codec(LAYOUT, calibration=make_calibration(LAYOUT, make_basis(LAYOUT)))
    whole = codec.encode(pool, TABLE, 128, coder="klt").curve.distortion
    parts = [LayerGroup(codec, span).encode(pool, TABLE, 128, Decision("stream", coder="klt"), Importance(0)) for span in ((0, 1), (1, 2))]
    assert np.mean([part.curve.distortion[0] for part in parts]) == pytest.approx(whole[0])
    assert np.mean([part.curve.distortion[-1] for part in parts]) == pytest.approx(whole[-1])


def test_a_file_keeps_the_laws_and_they_are_part_of_its_digest(tmp_path) -> None:
    plain = make_calibration(LAYOUT, make_basis(LAYOUT))
    told = replace(plain, laws=LAWS)
    told.save(tmp_path / "c.safetensors")
    again = load(tmp_path / "c.safetensors")
    assert again.laws == LAWS
    assert (again.digest, again.predicts) == (told.digest, told.digest)
    assert (plain.predicts, plain.digest != told.digest) == ("", True)
    plain.save(tmp_path / "p.safetensors")
    assert load(tmp_path / "p.safetensors").laws == {}


def test_the_law_through_points_is_found_and_what_says_nothing_is_left_out() -> None:
    distortion = np.geomspace(1e-4, 0.5, 9)
    kl = 2.0 * distortion**1.3
    law = fit([*distortion, 0.0, 1e-9, 2.0], [*kl, 0.5, 1e-7, 9.0])  # exact, noise, and answers that are lost
    assert law is not None
    assert (law.scale, law.exponent, law.spread) == pytest.approx((2.0, 1.3, 1.0))
    jittered = fit(distortion, kl * np.exp(0.2 * np.array([1, -1, 1, -1, 0, 1, -1, 1, -1])))
    assert jittered is not None
    assert 1.1 < jittered.spread < math.exp(0.25)
    assert fit(distortion[:2], kl[:2]) is None
    assert fit(distortion, kl[::-1]) is None  # more error, less divergence
    assert fit([0.1] * 5, [0.1, 0.2, 0.3, 0.1, 0.2]) is None


@pytest.mark.parametrize("numbers", [(0.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf), (1.0, 1.0, 0.0)])
def test_impossible_laws_are_refused(numbers) -> None:
    with pytest.raises(ValueError, match=r"divergence law: .* must be finite and above 0"):
        DivergenceLaw(*numbers)


def test_laws_of_one_coder_or_without_a_basis_are_refused() -> None:
    for basis, laws in ((make_basis(LAYOUT), {"fixed": LAWS["fixed"]}), (None, LAWS)):
        with pytest.raises(ValueError, match="divergence laws must be of fixed and entropy, and beside a klt basis"):
            make_calibration(LAYOUT, basis, laws=laws)
