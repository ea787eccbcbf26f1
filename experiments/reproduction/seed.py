"""The experiments of the reference implementation, repeated: policies, ablation, budget, context, fluctuation, cost, and the probe."""

from __future__ import annotations

import pandas as pd

from experiments.reproduction.markdown import table
from experiments.reproduction.runs import Experiments, means

PARTS = ("policies", "ablation", "budget", "context", "fluctuation", "cost", "probe")
TITLES = {
    "policies": ("Policy comparison (simulated, link of 10 Gbit/s that oscillates)", ["bitrate"]),
    "ablation": ("Ablation (simulated, the same link)", ["bitrate"]),
    "budget": ("Budget sweep: target distortion of `embedded` (simulated, the same link)", ["bitrate.target_distortion"]),
    "context": ("Context length (simulated, 25 Gbit/s)", ["workload.isl", "bitrate"]),
    "fluctuation": ("Network fluctuation (simulated, 10 Gbit/s at full share)", ["network", "bitrate"]),
    "cost": ("Three places to serve from: cost against quality (simulated, L40S data sheet, prices assumed)", ["network", "bitrate"]),
}
NOTES = {
    "policies": "Best means most goodput within the distortion limit, not the lowest time: `int2` is fast because it loses a tenth.",
    "ablation": "`allocated` is the embedded order at a fixed rate, `int4` one rate for all cells, `_off` adds the break-even test alone.",
    "budget": "Goodput counts the requests within the SLO, so it stops growing while TTFT still falls with the bytes.",
    "context": "Prefill grows faster than KV does, so the transfer matters less for long prompts.",
    "fluctuation": "On the steady link `embedded` gains by its order alone; on a changing link it also gains by its cut.",
    "cost": "Where bytes are free (25g) all policies cost the same; elsewhere the cost falls with the bytes.",
}


def text(part: str, experiments: Experiments) -> list[str]:
    title, by = TITLES[part]
    rows = means(experiments.run(part), by)
    cells = [
        (
            *(value if isinstance(value, str) else float(value) for value in row[:-1]),
            *row[-1],
        )
        for row in ((*(r[name] for name in by), _figures(r)) for r in rows.to_dict("records"))
    ]
    headings = (*by, "goodput (1/s)", "mean TTFT (s)", "p99 TTFT (s)", "of raw bytes", "mean distortion", "p99 distortion", "USD per 1,000")
    return [f"## {title}", "", *table(headings, cells), NOTES[part], ""]


def _figures(row: dict[str, float]) -> tuple[float, ...]:
    done = row["requests.completed"] or float("nan")
    names = ("goodput_per_s", "ttft_s.mean", "ttft_s.p99")
    share = row["wire_bytes"] / row["raw_bytes"] if row["raw_bytes"] else float("nan")
    return (*(float(row[n]) for n in names), share, row["distortion.mean"], row["distortion.p99"], 1000 * row["cost_usd"] / done)


def probe_text(rows: pd.DataFrame) -> list[str]:
    """rows: of real runs, with the columns network, policy and the figures of their summaries."""
    headings = ("network", "policy", "within SLO", "mean TTFT (s)", "p99 TTFT (s)", "of raw bytes", "mean distortion", "answers right")
    cells = [tuple(row) for row in rows.itertuples(index=False)]
    return ["## The probe on real processes of this machine, the same fluctuations (measured, one run each)", "", *table(headings, cells)]
