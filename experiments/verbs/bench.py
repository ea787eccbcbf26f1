"""`abkt bench kernels|transfer|sim …`: the benches of `python -m abkt.bench`, and the bench of the simulator."""

from __future__ import annotations

from collections.abc import Sequence

BENCHES = ("kernels", "transfer", "sim")


def main(given: Sequence[str]) -> None:
    """Raises ValueError, one line, for bad input."""
    if not given or given[0] not in BENCHES:
        wrong = f"there is no bench {given[0]}" if given else "a bench is needed"
        raise ValueError(f"{wrong}: kernels, transfer or sim; then key=value, such as out=DIR")
    if given[0] == "sim":
        from experiments.bench import simulator

        simulator.run(given[1:])
        return
    from abkt.bench.__main__ import run

    run(given)
