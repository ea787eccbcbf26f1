"""`abkt bench kernels|transfer|sim …`: the benches of `python -m abkt.bench`, and the bench of the simulator."""

from __future__ import annotations

from collections.abc import Sequence


def main(given: Sequence[str]) -> None:
    """Raises ValueError, one line, for bad input."""
    if not given:
        raise ValueError("a bench is needed: kernels, transfer or sim; then key=value, such as out=DIR")
    if given[0] == "sim":
        from experiments.bench import simulator

        simulator.run(given[1:])
        return
    from abkt.bench.__main__ import run

    run(given)
