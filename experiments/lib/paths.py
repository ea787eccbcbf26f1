"""Where conf/ and data/ are: at the root of a checkout (editable install), or inside the package of a wheel."""

from __future__ import annotations

from pathlib import Path

import abkt

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(abkt.__file__).resolve().parent


def conf_dir() -> Path:
    return _first("conf", "simulate.yaml")


def data_path(name: str) -> Path:
    """A file that comes with ABKT, by its path below data/. Whoever reads it says so if it is not there."""
    return _first("data", "ATTRIBUTION.md") / name


def _first(name: str, witness: str) -> Path:
    """The witness is a file that only our own folder has: beside a wheel's packages any folder may be called data."""
    places = (ROOT / name, PACKAGE / name)
    for place in places:
        if (place / witness).is_file():
            return place
    raise ValueError(f"no {name} folder in {' or '.join(str(p.parent) for p in places)}; install abkt again")
