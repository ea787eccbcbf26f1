"""The command `abkt`: it checks that `sim` and `experiments` are ABKT's own packages, then runs the command line.

Both are common names. If Python found another package of that name first, the command would fail later with an unclear error.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

BAD_INPUT = 2
PACKAGES = ("sim", "experiments")


def main() -> None:
    """Entry point of the console script `abkt`."""
    try:
        check_packages()
    except ValueError as error:
        print(f"abkt: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    import_module("experiments.cli").main()


def check_packages() -> None:
    """Raise ValueError, one line, if Python finds a `sim` or `experiments` that is not the one beside abkt."""
    home = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is None:
            raise ValueError(f"{name} is not installed beside abkt in {home}; install abkt again")
        place = Path(spec.origin or next(iter(spec.submodule_search_locations or []), "")).resolve()
        if place != home / name / "__init__.py":
            raise ValueError(f"{name} is {place}, which is not ABKT's; run from another folder or rename it")


if __name__ == "__main__":
    main()
