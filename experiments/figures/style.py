"""Colours, style and files of figures. Colours are Okabe and Ito's, which colour-blind readers can tell apart; the two worlds differ by
line style and hatch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib import style as styles
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

SHEET = Path(__file__).with_name("abkt.mplstyle")
STAGE_COLOURS = {
    "queue": "#BBBBBB",
    "prefill": "#0072B2",
    "encode": "#E69F00",
    "wire": "#D55E00",
    "expand": "#F0E442",
    "decode": "#009E73",
}
POLICY_COLOURS = ("#000000", "#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#888888")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "h")  # one more than colours, so that no pair repeats before 72 policies
BITRATES = ("raw", "int8", "int4", "embedded", "cachegen", "kvserve", "lossless", "int2", "fleet", "state_machine")
WORLDS = {"real": "measured", "simulated": "predicted"}
LINES: dict[str, Literal["-", "--"]] = {"real": "-", "simulated": "--"}


@contextmanager
def sheet() -> Iterator[None]:
    with styles.context(["default", SHEET]), matplotlib.rc_context({"svg.hashsalt": "abkt"}):
        yield


def looks(names: Sequence[str], known: Sequence[str] = BITRATES) -> dict[str, dict[str, Any]]:
    """Colour and marker of each name; known names have the same ones in every figure."""
    order = [*known, *(name for name in names if name not in known)]
    colour, marker = colours(order), markers(order)
    return {name: {"color": colour[name], "marker": marker[name]} for name in names}


def colours(names: Sequence[str]) -> dict[str, str]:
    return {name: POLICY_COLOURS[i % len(POLICY_COLOURS)] for i, name in enumerate(names)}


def markers(names: Sequence[str]) -> dict[str, str]:
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def log_scale(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with plain numbers: 0.1, 1, 10."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write name.pdf, name.svg and name.png without dates and versions, so that a figure always gives the same bytes. Returns the PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Producer": None, "Creator": None})
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    return folder / f"{name}.png"
