"""Adaptation over time, measured: a link of real processes that falls to a tenth from 15 s to 30 s of every minute.

Above: goodput of each transfer. Middle: its duration. Below: bits sent per KV value. Short prompts are left out, because most of them is
always sent losslessly. A fixed rate waits in the drop; adaptive policies send less there and more again afterwards."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.stored import Stored
from experiments.figures.style import BITRATES, looks

INPUTS = ("adaptation",)
MEGABIT = 1e6 / 8
SHORT = 0.7  # prompts with less than this share of the median's raw bytes are left out


def draw(tables: Mapping[str, Stored]) -> Figure:
    stored = tables["adaptation"]
    rows = stored.rows.sort_values("start_s")
    rows = rows[rows.raw_bytes >= SHORT * rows.raw_bytes.median()]
    policies = [name for name in BITRATES if name in set(rows.policy)]
    look = looks(policies)
    figure = Figure(figsize=(6.0, 5.6))
    link, wait, bits = figure.subplots(3, 1, sharex=True)
    starts, rates = _schedule(stored.facts, float(rows.finish_s.max()))
    link.step(starts, [r / MEGABIT for r in rates], where="post", color="#777777", linewidth=1.2)
    for begin, end, rate in zip(starts, [*starts[1:], starts[-1]], rates, strict=True):
        if rate < max(rates) / 2:
            for axes in (link, wait, bits):
                axes.axvspan(begin, end, color="#EEEEEE", zorder=0, linewidth=0)
    for policy in policies:
        line = rows[rows.policy == policy]
        seconds = np.maximum(line.finish_s - line.start_s, 1e-9)
        style = {**look[policy], "markersize": 4, "markerfacecolor": "none", "linewidth": 0.9}
        link.plot((line.start_s + line.finish_s) / 2, line.wire_bytes / seconds / MEGABIT, **style | {"linestyle": "none"})
        wait.plot(line.start_s, seconds, label=policy, **style)
        bits.plot(line.start_s, line.bits_per_value, **style)
    link.set_ylim(bottom=0)
    link.set_ylabel("link (Mbit/s)")
    wait.set_yscale("log")
    wait.set_yticks([0.03, 0.1, 0.3, 1, 3], ["0.03", "0.1", "0.3", "1", "3"])
    wait.set_yticks([], minor=True)
    wait.set_ylabel("transfer (s)")
    bits.set_ylim(0, 1.1 * float(rows.bits_per_value.max()))
    bits.set_ylabel("bits per value")
    bits.set_xlabel("time (s)")
    figure.legend(loc="outside upper left", ncols=4)
    return figure


def _schedule(facts: Mapping[str, object], end_s: float) -> tuple[list[float], list[float]]:
    """Starts and rates until end_s, of a schedule that repeats."""
    schedule = facts["link"]
    assert isinstance(schedule, dict)
    times, rates = [], []
    period_s = float(schedule["period_s"] or "inf")
    rounds = 1 if period_s == float("inf") else int(end_s // period_s) + 1
    for turn in range(rounds):
        for start_s, rate in zip(schedule["starts_s"], schedule["bytes_per_s"], strict=True):
            at_s = start_s + (turn * period_s if turn else 0.0)
            if at_s < end_s:
                times.append(at_s)
                rates.append(rate)
    return [*times, end_s], [*rates, rates[-1]]
