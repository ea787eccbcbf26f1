"""A library of curves from a run of `abkt quality`: divergence by bytes for each coder, and what the simulator says of answers with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from abkt.spec import KVLayout, ModelSpec
from experiments.lib.curves import expected_kl, expected_quality, known_quality, load_curves, load_quality
from experiments.quality import curves
from tests.codec.klt.conftest import make_basis, make_calibration

SHARES = {"ours": (0.05, 0.1, 0.2, 0.4), "uniform": (0.1, 0.2, 0.3), "klt": (0.03, 0.06, 0.12)}


def kl_of(method: str, share: float, sample: int) -> float:
    """Power laws, so that their interpolation is exact: klt needs a third of the bytes."""
    return {"ours": 1.0, "uniform": 2.0, "klt": 1 / 27}[method] * (1 + sample) * 1e-5 / share**3


def outcomes(samples: int = 2, methods: tuple[str, ...] = tuple(SHARES)) -> pd.DataFrame:
    """A row for each sample, method and rate; the likelihood rises by half of the divergence."""
    rows = [
        {
            "sample": sample, "kind": "text", "tokens": 512, "method": method, "wire_bytes": round(1_000_000 * share),
            "rate": f"{share:g}" if method == "klt" else f"{i + 1}", "raw_bytes": 1_000_000, "kl": kl_of(method, share, sample),
            "nll": 2.0 + kl_of(method, share, sample) / 2, "raw_nll": 2.0, "distortion": 0.1 / (i + 1),
        }
        for sample in range(samples) for method in methods for i, share in enumerate(SHARES[method])
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    layout = KVLayout(ModelSpec("m", 2, 2, 8), 8)
    make_calibration(layout, make_basis(layout)).save(tmp_path / "calibration.safetensors")
    outcomes().to_parquet(tmp_path / "run.parquet")
    return tmp_path


def test_each_prompt_gives_the_curves_of_all_coders_in_nats(run: Path) -> None:
    curves.main([str(run / "run.parquet"), f"out={run / 'c.json'}", f"calibration={run / 'calibration.safetensors'}"])
    rates = load_curves(run / "c.json")
    assert [(rate.nats, rate.tokens, len(rate.slope.bytes), len(rate.uniform.bytes)) for rate in rates] == [(True, 512, 64, 3)] * 2
    for sample, rate in enumerate(rates):
        assert rate.klt is not None
        for name, curve in (("ours", rate.slope), ("uniform", rate.uniform), ("klt", rate.klt)):
            assert (curve.bytes[0], curve.bytes[-1]) == (SHARES[name][0], SHARES[name][-1])
            assert curve.distortion == pytest.approx([kl_of(name, share, sample) for share in curve.bytes], rel=1e-3)
        assert rate.slope.bits[-1] == 4
        assert rate.klt.bits[-1] == pytest.approx(16 * 0.12)
        needed = [curve.bytes[curve.cut_reaching(0.01 * (1 + sample))] for curve in (rate.klt, rate.slope)]
        assert needed[0] == pytest.approx(needed[1] / 3, rel=0.05)


def test_a_cut_that_was_measured_as_worse_by_chance_is_as_good_as_the_one_before() -> None:
    frame = outcomes(1)
    worse = (frame.method == "klt") & (frame.rate == "0.06")
    frame.loc[worse, "kl"] = 9.0
    made = curves.rate_curves(frame.assign(of_raw=frame.wire_bytes / frame.raw_bytes), "d")[0].klt
    assert made is not None
    assert made.distortion[0] == pytest.approx(kl_of("klt", 0.03, 0), rel=1e-4)
    assert (np.diff(made.distortion) <= 0).all()


def test_the_simulator_says_the_divergence_and_the_rise_of_a_librarys_transfers(run: Path) -> None:
    curves.main([str(run / "run.parquet"), f"out={run / 'c.json'}", f"calibration={run / 'calibration.safetensors'}"])
    rates, at = load_curves(run / "c.json"), [0.002, 0.004, 0.03]
    assert expected_kl(at, rates) == {"mean": pytest.approx(0.012), "p99": pytest.approx(np.quantile(at, 0.99))}
    rise, refused = expected_quality(at, rates, known_quality(run / "c.json"))
    assert refused == ""
    assert rise is not None
    assert 0.0059 < rise["text"]["mean"] < 0.008  # half of the divergence; a chord between measured points lies above it
    assert len(load_quality(run / "c.json")) == 4
    assert expected_kl(at, load_curves(Path("data/curves/probe.json"))) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the folder of a run and a file"),
        (["DIR", "out=c.json", "best=klt"], "best= is unknown"),
        (["DIR"], "give the folder of a run and a file"),
        (["none", "out=c.json"], "none has no outcomes.jsonl; give the out= of `abkt quality`"),
        (
            ["DIR/run.parquet", "out=c.json", "klt=none", "calibration=DIR/calibration.safetensors"],
            "no prompt has two rates of each of ours",
        ),
        (["DIR/run.parquet", "out=c.json", "calibration=none.safetensors"], "calibration none.safetensors does not exist"),
    ],
)
def test_a_wrong_call_is_one_line(run: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        curves.main([argument.replace("DIR", str(run)) for argument in arguments])
    assert not (run / "c.json").exists()
