"""The lossless mode in the expected view, and the message if a profile lacks it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from abkt.policy.bitrate.fixed import Raw
from abkt.policy.bitrate.lossless import Lossless
from abkt.policy.view import Curve
from abkt.profile.expect import ask_once, expected_view
from abkt.profile.roofline import GpuSpec, roofline
from abkt.profile.schema import Profile, RateCurve, load
from abkt.spec import ModelSpec

CURVE = RateCurve(64, Curve((0.1, 0.5), (1.0, 0.01), (0.0, 8.0)), Curve((0.1, 0.5), (1.0, 0.01), (0.0, 8.0)))
GPU = GpuSpec("made-up", flops=1e15, memory_bytes_per_s=1e12, memory_bytes=1e11)


def made(dtype: str = "bfloat16") -> Profile:
    model = ModelSpec("m", layers=2, kv_heads=2, head_dim=64, dtype=dtype, hidden=128, heads=2, parameters=1e6, active_parameters=1e6)
    return roofline(GPU, model, (CURVE,))


def test_a_roofline_has_a_lossless_mode_of_three_quarters_of_bfloat16() -> None:
    """1,024 bytes a token are read and 768 written, at 0.6 TB/s, after one call."""
    view = expected_view(made(), 1000, 0.0)
    assert view.raw_bytes == 1_024_000
    assert view.lossless_bytes == 768_000
    assert view.lossless_encode_s == view.lossless_expand_s == pytest.approx(1e-5 + 1000 * (1024 + 768) / 0.6e12)


def test_other_dtypes_have_no_lossless_mode() -> None:
    assert expected_view(made("float8_e4m3fn"), 1000, 0.0).lossless_bytes == 0.0


@pytest.mark.parametrize("lacking", ["encode/lossless", "expand/lossless"])
def test_a_lossless_mode_needs_both_tables(lacking) -> None:
    profile = made()
    half = replace(profile, fits={name: fit for name, fit in profile.fits.items() if name != lacking})
    assert expected_view(half, 1000, 0.0).lossless_bytes == 0.0


def test_a_policy_that_cannot_work_is_refused_before_the_run() -> None:
    ask_once(Lossless(), made())
    ask_once(Raw(), replace(made(), lossless_share=0.0))
    with pytest.raises(ValueError, match=r"lossless: .*run `abkt profile` again"):
        ask_once(Lossless(), replace(made(), lossless_share=0.0))


def test_a_profile_without_the_share_has_no_lossless_mode(tmp_path) -> None:
    data = asdict(made())
    del data["lossless_share"]
    (tmp_path / "profile.json").write_text(json.dumps(data))
    assert load(tmp_path / "profile.json").lossless_share == 0.0
    made().save(tmp_path / "new.json")
    assert load(tmp_path / "new.json").lossless_share == 0.75
