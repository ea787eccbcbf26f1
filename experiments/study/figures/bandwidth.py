"""Above: the link's capacity, the goodput of each transfer of the first repeat, and the policy's estimate of the link. Below: bits sent
per KV value.

A bar spans a transfer from its first to its last byte. Above are the policies that estimate the link (all policies, if none does). Below,
open marks are measured transfers and crosses are predicted ones."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.style import colours, markers
from experiments.study.folder import Study

MEGABIT = 1e6 / 8


def draw(study: Study, width_in: float) -> Figure:
    figure = Figure(figsize=(width_in, 5.4))
    above, below = figure.subplots(2, 1, sharex=True)
    colour, marker = colours(study.policies), markers(study.policies)
    end_s = float(np.nanmax(study.transfers[study.transfers.world != "scaleout"].finish_s, initial=1.0))
    times, rates = _schedule(study, end_s)
    if all(map(math.isfinite, rates)):
        above.step(times, [r / MEGABIT for r in rates], where="post", color="#777777", linewidth=1.2, label="capacity")
    estimating = [policy for policy in study.policies if study.sent("real", policy).estimate_bytes_per_s.notna().any()]
    for policy in estimating or study.policies:
        sent = study.sent("real", policy)
        seconds = (sent.finish_s - sent.start_s).clip(lower=1e-9)
        above.hlines(sent.wire_bytes / seconds / MEGABIT, sent.start_s, sent.finish_s, color=colour[policy], linewidth=2.4, label=policy)
        if policy in estimating:
            look = {"color": colour[policy], "linewidth": 1.3, "label": f"{policy}, estimate"}
            above.step(sent.start_s, sent.estimate_bytes_per_s / MEGABIT, ":", where="post", **look)
    for policy in study.policies:
        look = {"color": colour[policy], "linestyle": "none", "markerfacecolor": "none"}
        for world, mark, width, label in (("real", marker[policy], 1.0, policy), ("simulated", "x", 0.7, f"_{policy}")):
            sent = study.sent(world, policy)
            below.plot(sent.start_s, sent.bits_per_value, marker=mark, markeredgewidth=width, label=label, **look)
    above.set_ylim(bottom=0)
    above.set_ylabel("link (Mbit/s)")
    below.set_ylim(0, max(16.0, below.get_ylim()[1]) * 1.06)
    below.set_yticks(range(0, 17, 4))
    below.set_ylabel("bits per KV value")
    below.set_xlabel("time (s)")
    columns = 5 if width_in > 6 else 2
    above.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.1)
    below.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns + 1, borderaxespad=0.1, handletextpad=0.2)
    return figure


def _schedule(study: Study, end_s: float) -> tuple[list[float], list[float]]:
    times, rates, now_s = [], [], 0.0
    while now_s < end_s:
        rate, change_s = study.link.at(now_s)
        times.append(now_s)
        rates.append(rate)
        now_s = change_s
    return [*times, end_s], [*rates, rates[-1]]
