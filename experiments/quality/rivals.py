"""Rivals as methods: the published codecs that calibrate, each fitted on the same texts when it is first asked for its rates, and those
that leave tokens out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from abkt.codec.baselines.base import Baseline
from abkt.codec.baselines.calibrated import cachegen, kvquant, kvtc, kvtuner, matter
from abkt.codec.baselines.calibrated.kv import CalibrationKV
from experiments.quality.dropping import FirstAndLast, SnapKv
from experiments.quality.methods import Held, Method, RatePoint

STEPS = (2.0, 1.0, 0.5, 0.25)


@dataclass(frozen=True)
class Fitted:
    """A rival at several rates. fit: makes its codecs, coarse to fine, each with the name of its rate."""

    name: str
    fit: Callable[[], Sequence[tuple[str, Baseline]]]

    def points(self, held: Held) -> Iterator[RatePoint]:
        for rate, codec in self.fit():
            data = codec.encode(held.pool, held.table, held.tokens)
            yield RatePoint(rate, len(data), partial(codec.expand, data, held.pool))


def rivals(calibration: Callable[[], CalibrationKV]) -> dict[str, Method]:
    """The rivals by name. calibration: gives the KV and the Fisher information of the calibration texts; asked only if a rival is used."""
    made = (
        Fitted("cachegen-widths", cache(lambda: [(f"{c:g}", cachegen.fit(calibration(), c)) for c in (4.0, 2.0, 1.0)])),
        Fitted("kvquant", cache(lambda: [(f"{b}", kvquant.fit(calibration(), b)) for b in (2, 3, 4)])),
        Fitted("kvtuner", cache(lambda: [(f"{b:g}", kvtuner.fit(calibration(), b)) for b in (3.0, 4.0)])),
        Fitted("matter", cache(lambda: [(f"{s:g}", matter.fit(calibration(), s)) for s in (0.5, 0.75)])),
        Fitted("kvtc", cache(lambda: _named(kvtc.fit(calibration(), STEPS)))),
        Fitted("kvtc-best", cache(lambda: _named(kvtc.fit(calibration(), STEPS, weighted=True, window=16, name="kvtcw")))),
    )
    return {method.name: method for method in made}


def dropping() -> dict[str, Method]:
    """The rivals that leave tokens out, by name."""
    made: tuple[Method, ...] = (SnapKv(), FirstAndLast())
    return {method.name: method for method in made}


CALIBRATED = ("cachegen-widths", "kvquant", "kvtuner", "matter", "kvtc", "kvtc-best")


def _named(codecs: Sequence[kvtc.Kvtc]) -> list[tuple[str, Baseline]]:
    return [(codec.name.rpartition("-")[2], codec) for codec in codecs]
