"""FlowKV (arXiv 2504.03775) repeated: its layout table on this machine, its serving cases in the simulator."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from abkt.spec import ModelSpec
from experiments.reproduction import layouts, published, unlike
from experiments.reproduction.markdown import percent, table
from experiments.reproduction.runs import Experiments, means

PARTS = ("layout", "longbench", "loads", "unlike")
DATASETS = {"multi_news": 2700, "gov_report": 11400, "qmsum": 13800}
WHY_LAYOUT = (
    "The published times are of NCCL between A100s, where each call is a launch of about 35 µs and the bytes themselves take "
    "little, so nearly all of the gain comes from fewer calls. Here a call is a system call or a copy of a few µs, and a CPU core "
    "moves the bytes at a few GB/s. So the same cut in calls gains far less, and one long run can even be slower than short pieces "
    "that stay in the cache."
)
WHY_LONGBENCH = (
    "The paper gives neither the arrival rate nor the output lengths of its figures, and its colocated side is another engine. In "
    "the simulator both sides are the same engine, with costs of a data sheet. Disaggregation saves decoding the wait for prefills of "
    "other requests (TPOT), which grows with the load and the prompt. It costs a transfer, and it leaves each phase half of the machines "
    "(TTFT), which overload first."
)
WHY_LOADS = "The paper shows these cases as curves of its cluster; the simulator shows which regime gains from moving roles."
WHY_UNLIKE = "Prefill needs FLOPS and decode needs memory bandwidth, so it matters which of two unlike GPUs prefills, as the paper says."


def layout(tokens: Sequence[int], transports: Sequence[str], layers: int, repeats: int, step: Callable[[str], None]) -> pd.DataFrame:
    """A table of the measured and the published rows."""
    model = ModelSpec("layout", layers, 8, 128)
    with tempfile.TemporaryDirectory(prefix="abkt-") as folder:
        rows = [asdict(row) for row in layouts.measure(model, tokens, transports, repeats, Path(folder), step)]
    calls = {(row["layout"], row["tokens"]): row["calls"] for row in rows}
    for kind, seconds in published.LAYOUT_S.items():
        for count, value in seconds.items():
            row = {"layout": kind, "transport": "published", "tokens": count, "calls": calls.get((kind, count), 0), "bytes": 0}
            rows.append({**row, "seconds": value, "source": "FlowKV"})
    return pd.DataFrame(rows)


def layout_text(rows: pd.DataFrame) -> list[str]:
    lines = ["## Layout: calls and latency of moving one prompt's KV", ""]
    measured, cells = rows[rows.source == "measured"], []
    for (transport, tokens), part in measured.groupby(["transport", "tokens"], sort=False):
        at = part.set_index("layout")
        ours = float(at.seconds["layer-wise"] / at.seconds["block-contiguous"])
        theirs = published.LAYOUT_S["layer-wise"].get(tokens, float("nan")) / published.LAYOUT_S["block-contiguous"].get(
            tokens, float("nan")
        )
        times_ms = [float(at.seconds[kind] * 1e3) for kind in layouts.LAYOUTS]
        counts = " / ".join(f"{at.calls[kind]:,}" for kind in layouts.LAYOUTS)
        cells.append((transport, int(tokens), counts, *times_ms, ours, theirs, ours / theirs))
    times = ("layer-wise (ms)", "block-wise (ms)", "contiguous (ms)")
    headings = ("transport", "tokens", "calls: layer-wise / block-wise / contiguous", *times, "gain here", "gain published", "ratio")
    lines += table(headings, cells)
    kinds = published.LAYOUT_S
    lines += table(("published (ms)", *map(str, published.TOKENS)), [(kind, *(s * 1e3 for s in kinds[kind].values())) for kind in kinds])
    before_s, after_s = published.TRANSFER_BEFORE_S, published.TRANSFER_AFTER_S
    claim = f"The abstract's {before_s} s to {after_s} s is {1 - after_s / before_s:.1%} less; the text says {published.CLAIMED:.0%}."
    return [*lines, f"Why they differ: {WHY_LAYOUT}", "", *two_nodes_text(measured), claim, ""]


def two_nodes_text(measured: pd.DataFrame) -> list[str]:
    """The published transfers between two nodes beside those over TCP here; empty where no such length was measured over TCP."""
    at = measured[(measured.transport == "tcp") & (measured.layout == "block-contiguous")].set_index("tokens")
    cells = [(n, s * 1e3, float(at.seconds[n]) * 1e3, float(at.seconds[n]) / s) for n, s in published.TWO_NODES_S.items() if n in at.index]
    if not cells:
        return []
    why = "There a network card writes into GPU memory; here one core copies every byte into a socket and another one out of it."
    headings = ("tokens", "published, between two nodes (ms)", "TCP here, contiguous (ms)", "ratio")
    return [*table(headings, cells), f"Why they differ: {why}", ""]


def longbench_text(experiments: Experiments) -> list[str]:
    rows = means(experiments.run("flowkv_longbench"), ["roles", "workload.isl", "workload.rate_per_s"])
    names, cells = {isl: name for name, isl in DATASETS.items()}, []
    for (isl, rate), part in rows.groupby(["workload.isl", "workload.rate_per_s"], sort=False):
        at = part.set_index("roles")
        saved = {what: 1 - at.loc["static", f"{what}.mean"] / at.loc["colocated", f"{what}.mean"] for what in ("e2e_s", "ttft_s", "tpot_s")}
        theirs = published.LONGBENCH_SPEEDUP[names[isl]]
        shares = (percent(saved["e2e_s"]), percent(saved["ttft_s"]), percent(saved["tpot_s"]), percent(theirs))
        cells.append((names[isl], int(isl), float(rate), *shares, float(saved["e2e_s"] / theirs)))
    lines = ["## LongBench lengths: one prefill and one decode node against two colocated ones (simulated, A100 data sheet)", ""]
    headings = ("dataset", "tokens", "requests/s", "E2E saved", "TTFT saved", "TPOT saved", "published", "ratio")
    return [*lines, *table(headings, cells), f"Why they differ: {WHY_LONGBENCH}", ""]


def loads_text(experiments: Experiments) -> list[str]:
    rows = means(experiments.run("flowkv_loads"), ["roles", "workload.isl", "workload.osl", "workload.rate_per_s"])
    words = {(500, 50): "light", (8000, 50): "prefill-heavy", (500, 1000): "decode-heavy", (8000, 1000): "heavy on both"}
    cells = []
    for (isl, osl, rate), part in rows.groupby(["workload.isl", "workload.osl", "workload.rate_per_s"], sort=False):
        static = part.set_index("roles").loc["static"]
        for row in part.to_dict("records"):
            less = percent(row["e2e_s.mean"] / static["e2e_s.mean"] - 1)
            shown = (
                float(row["goodput_per_s"]),
                float(row["ttft_s.mean"]),
                float(row["tpot_s.mean"] * 1e3),
                float(row["e2e_s.mean"]),
                less,
            )
            cells.append((words[isl, osl], f"{isl:.0f}/{osl:.0f}", int(rate), row["roles"], *shown))
    figures = ("goodput (1/s)", "mean TTFT (s)", "mean TPOT (ms)", "mean E2E (s)", "E2E against static")
    headings = ("load", "prompt/answer", "requests/s", "roles", *figures)
    lines = ["## Imbalance and overload (simulated, 4P4D H100 data sheet)", ""]
    return [*lines, *table(headings, cells), f"The paper prints no figures for these cases. {WHY_LOADS}", ""]


def unlike_text(seed: int) -> list[str]:
    cells = [tuple(row.values()) for row in unlike.rows(seed)]
    headings = ("prefill", "decode", "mean TTFT (s)", "mean TPOT (s)", "mean E2E (s)", "goodput (1/s)", "USD per 1,000")
    return ["## Unlike GPUs (simulated, 2P2D, data sheets)", "", *table(headings, cells), WHY_UNLIKE, ""]
