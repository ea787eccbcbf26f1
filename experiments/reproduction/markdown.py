"""Markdown tables and the numbers in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return [*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows), ""]


def cell(value: object) -> str:
    """A cell: three significant digits of a float, a dash for nan."""
    if isinstance(value, float):
        if math.isnan(value):
            return "–"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}".replace("-", "−")
    return f"{value:,}" if isinstance(value, int) else str(value)


def percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:+.1%}".replace("%", " %").replace("-", "−")
