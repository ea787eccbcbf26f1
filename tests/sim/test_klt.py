"""The klt coder in the simulator: chosen by the same policy as on real workers, with its own bytes, times and distortion."""

from __future__ import annotations

from dataclasses import replace

import pytest

from abkt.policy.bandwidth import Bandwidth
from abkt.policy.bitrate.embedded import Embedded
from abkt.policy.bitrate.equal import Equal
from abkt.policy.view import Curve
from abkt.profile.expect import expected_view
from abkt.profile.schema import Profile
from sim.workload.requests import Request
from tests.sim.conftest import exact
from tests.sim.test_cluster import SLOS, cluster, run

KLT = Curve((0.005, 0.01, 0.02, 0.06), (0.5, 0.05, 0.0015, 0.0003), (0.0, 1.0, 3.0, 8.0))
TIMES = {"encode/klt": exact({"1": 0.0131, "tokens": 2.9e-4}), "expand/klt": exact({"1": 0.0113, "tokens": 1.7e-4})}
BUDGET = (0.002, 0.004, 0.016)
RAW_BYTES = 6400


@pytest.fixture(scope="module")
def measured(profile: Profile) -> Profile:
    """The made-up machine with a calibrated model: its curves are in nats, and it has measured klt."""
    curves = tuple(replace(curve, nats=True, klt=KLT, calibration="0123456789abcdef") for curve in profile.curves)
    return replace(profile, curves=curves, fits={**profile.fits, **TIMES})


def sent(profile: Profile, rate: float, **more):
    """The record and the transfer of one request of 100 tokens over a link of `rate` bytes/s."""

    def bitrate() -> Embedded:
        return Embedded(Bandwidth(rate), *BUDGET, **more)

    result = run(cluster(profile, rate=rate), [Request(0, 1.0, 100, 4)], bitrate, slo=replace(SLOS, ttft_s=60.0), debug=True)
    return result.requests[0], result.transfers[0]


def test_a_slow_link_gets_klt_and_a_fast_one_the_fixed_coder(measured: Profile) -> None:
    """klt takes 0.042 s to encode and 0.028 s to expand. It saves about 0.26 x 6,400 bytes, which are 0.07 s at 24 kB/s."""
    (slow, klt), (fast, fixed) = sent(measured, 2e3), sent(measured, 2e5)
    assert (klt.coder, fixed.coder) == ("klt", "fixed")
    assert (klt.wire_bytes, klt.cut) == (round(0.02 * RAW_BYTES), 2)
    assert slow.distortion_start == 0.0015
    assert slow.encode_busy_s == pytest.approx(0.0131 + 100 * 2.9e-4)
    assert slow.expand_busy_s == pytest.approx(0.0113 + 100 * 1.7e-4)
    assert fixed.wire_bytes > 10 * klt.wire_bytes
    assert fast.distortion_start <= 0.002


def test_the_choice_is_that_of_the_policy_on_the_expected_view(measured: Profile) -> None:
    for rate in (2e3, 1e4, 2e4, 4e4, 2e5):
        asked = Embedded(Bandwidth(rate), *BUDGET).decide(0.0, expected_view(measured, 100, 60.0))
        assert sent(measured, rate)[1].coder == asked.coder


def test_a_klt_stream_is_refined_like_any_other(measured: Profile) -> None:
    record, transfer = sent(measured, 2e4, refine_distortion=0.0004)
    assert transfer.coder == "klt"
    assert (transfer.refine_bytes, transfer.distortion_final) == (round(0.04 * RAW_BYTES), 0.0003)
    assert record.distortion_token_weighted <= record.distortion_start == 0.0015


@pytest.mark.parametrize("lacking", ["encode/klt", "expand/klt"])
def test_hardware_without_measured_times_never_gets_klt(measured: Profile, lacking: str) -> None:
    half = replace(measured, fits={name: fit for name, fit in measured.fits.items() if name != lacking})
    assert sent(half, 2e3)[1].coder == "fixed"
    untimed = cluster(replace(measured, fits={name: fit for name, fit in measured.fits.items() if name not in TIMES}))
    with pytest.raises(ValueError, match=r"the profile has no table encode/klt; run `abkt profile` again"):
        run(untimed, [Request(0, 1.0, 100, 4)], lambda: Equal(0.002, coder="klt"))
