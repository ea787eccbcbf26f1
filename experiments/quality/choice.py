"""The choice of the methods that a run compares, and the reasons why others are left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from experiments.quality.methods import Held, Method
from experiments.quality.peers import failure, peers, reasons
from experiments.quality.rivals import CALIBRATED

KLT = ("ours_klt", "ours_klt-flat", "klt", "klt-flat", "auto")


def check(names: Sequence[str], own: Mapping[str, Method]) -> None:
    """Raises ValueError, one line, for an unknown name or one whose package is not installed."""
    for name in names:
        if name in reasons():
            raise ValueError(
                f"codec {name}: {reasons()[name]}; leave it out, or install it (`pip install abkt[peers]` has all but lmcache)"
            )
        if name in CALIBRATED and name not in own:
            raise ValueError(f"codec {name} calibrates on texts; give calibration_texts=FILE_OR_FOLDER, or leave it out")
        if name in KLT and name not in own:
            raise ValueError(f"codec {name} needs a calibration with a klt basis; give calibration=FILE of this model, or calibrate=true")
        if name != "all" and name not in {**own, **peers()}:
            raise ValueError(f"codec {name} is unknown; there are {', '.join({**own, **peers()})}, and all")


def choose(names: Sequence[str], own: Mapping[str, Method], helds: Iterable[Held]) -> tuple[list[Method], dict[str, str]]:
    """(the methods, name -> why `all` leaves it out). A method is left out if its package is missing or it fails on one of helds."""
    known = {**own, **peers()}
    chosen = dict(known) if "all" in names else {name: known[name] for name in names}
    left_out = reasons() if "all" in names else {}
    theirs = [method for name, method in chosen.items() if name not in own]
    for held in helds if theirs else ():
        left_out |= {method.name: why for method in theirs if method.name not in left_out and (why := failure(method, held))}
    return [method for name, method in chosen.items() if name not in left_out], left_out
