"""A calibrated tiny model on real workers: `embedded` sends klt over a slow link, and fixed over a fast one. No time is asserted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abkt.capacity import Capacity
from abkt.codec.divergence import DivergenceLaw
from abkt.policy.build import build
from abkt.policy.view import Curve
from abkt.profile.schema import Fit, Profile, RateCurve
from abkt.serve import LocalCluster, LocalClusterSpec
from abkt.serve.engine.model_folder import fingerprint
from abkt.serve.expect import serving_view
from sim.cost import Costs
from tests.codec.klt.conftest import make_basis, make_calibration
from tests.serve.test_real_cluster import SLOW_SLO, prompts

pytestmark = pytest.mark.slow
LAWS = {"fixed": DivergenceLaw(1.0, 1.2), "entropy": DivergenceLaw(1.0, 1.2)}
SECONDS = {"8": 0.01, "4": 0.01, "2": 0.01, "raw": 0.001, "klt": 0.08}  # of encoding and of expanding, made up
SLOW, FAST = 2e5, 2e6  # bytes/s


def embedded(rate: float) -> dict[str, Any]:
    link = {"_target_": "abkt.policy.bandwidth.Bandwidth", "initial_bytes_per_s": rate}
    return {
        "_target_": "abkt.policy.bitrate.embedded.Embedded",
        "link": link,
        "target_distortion": 0.01,
        "mean_distortion": 0.5,
        "max_distortion": 0.5,
    }


@pytest.fixture(scope="module")
def calibrated(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    """(a running cluster with a calibration that predicts divergence, a profile of it)."""
    folder = tmp_path_factory.mktemp("calibrated")
    layout = LocalClusterSpec(tiny_model, pool_tokens=1024).layout()
    calibration = make_calibration(layout, make_basis(layout), fingerprint=fingerprint(tiny_model), laws=LAWS)
    calibration.save(folder / "calibration.safetensors")

    def fit(seconds: float, feature: str = "1") -> Fit:
        return Fit((feature,), (seconds,), {}, {}, 0.0, 9)

    fits = {f"{stage}/{codec}": fit(seconds) for codec, seconds in SECONDS.items() for stage in ("encode", "expand")}
    fits |= {"prefill": fit(1e-4, "tokens"), "decode": fit(1e-2), "transport": fit(1e-9, "bytes")}
    slope = Curve((0.1, 0.2, 0.3), (1.0, 0.1, 0.005), (0.0, 2.0, 8.0))
    curve = RateCurve(300, slope, slope, calibration.digest, True, Curve((0.02, 0.04, 0.06), (1.0, 0.1, 0.005), (0.0, 2.0, 8.0)))
    spec = LocalClusterSpec(tiny_model, pool_tokens=1024, max_batch=4, calibration=folder / "calibration.safetensors")
    with LocalCluster(spec, folder) as running:
        yield running, Profile(layout.model, fits, (curve,))


def test_embedded_sends_klt_over_a_slow_link_and_the_fixed_coder_over_a_fast_one(calibrated) -> None:
    cluster, profile = calibrated
    found = {}
    for rate in (SLOW, FAST):
        run = cluster.run(prompts(lengths=(200, 300), gap_s=0.0), embedded(rate), Capacity.constant(rate), SLOW_SLO, profile)
        assert [r.outcome for r in run.requests] == ["completed"] * 2
        assert all(r.distortion_start > 0 for r in run.requests)
        found[rate] = run.transfers
        expected = [build(embedded(rate)).decide(0.0, serving_view(profile, cluster.model, n, 5.0)) for n in (200, 300)]
        simulated = [build(embedded(rate)).decide(0.0, Costs(profile).view(n, 5.0)) for n in (200, 300)]
        assert [t.coder for t in sorted(run.transfers, key=lambda t: t.request_id)] == [d.coder for d in expected]
        assert [d.coder for d in simulated] == [d.coder for d in expected]
    assert {t.coder for t in found[SLOW]} == {"klt"}
    assert {t.coder for t in found[FAST]} == {"fixed"}


def test_a_profile_of_another_calibration_is_refused_before_anything_runs(calibrated) -> None:
    cluster, profile = calibrated
    plain = tuple(replace(curve, nats=False, klt=None) for curve in profile.curves)
    other = tuple(replace(curve, calibration="0123456789abcdef") for curve in profile.curves)
    for curves in (plain, other):
        with pytest.raises(ValueError, match=r"the distortion of the profile's curves is .* run `abkt profile` again"):
            cluster.run(prompts(), embedded(SLOW), Capacity.constant(SLOW), SLOW_SLO, replace(profile, curves=curves))
