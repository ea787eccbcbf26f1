"""The tables of published servers: errors by split and by group, causes of misses, and picks at a TPOT SLO."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from experiments.published.closed_loop import Overheads
from experiments.published.misses import CAUSES, OTHER, TARGETS, cause, is_short_of_memory
from experiments.published.rows import Row, overheads_of
from experiments.published.servers import FITTED_ON, Predicted, held_out, response, shipped
from experiments.published.simulated import simulate, spread

SLOS_S = (0.010, 0.015, 0.020, 0.030, 0.050)
MARGIN = 0.10  # of a pick: its predicted TPOT lies at least this much below the SLO
ERRORS = "TPOT | bias | TTFT | bias | TTFT, median row | throughput | bias"


@dataclass(frozen=True, slots=True)
class Comparison:
    """views: name of a split -> its predictions of the same rows. fits: engine and release -> overheads without its rows. sampled: rows
    that were also run through sim itself, with the [ttft, tpot] that it gave."""

    views: dict[str, Predicted]
    fits: dict[str, Overheads]
    sampled: Predicted | None = None

    @property
    def ships(self) -> Predicted:
        return self.views["as it ships"]


def compare(rows: Sequence[Row], sampled: int = 0, step: Callable[[], None] = lambda: None) -> Comparison:
    """All splits, or "as it ships" alone where no row of FITTED_ON is there to fit. sampled: number of rows for sim itself."""
    views, fits = {"as it ships": shipped(rows, step)}, dict[str, Overheads]()
    if any(row.system == FITTED_ON for row in rows):
        measured = response(rows, step)
        views["engine held out"], fits = held_out(measured, lambda row: row.engine, engines=True)
        views["model held out"], _ = held_out(measured, lambda row: row.model, engines=False)
    chosen = spread([row for row in rows if not is_short_of_memory(row)], sampled)
    if not chosen:
        return Comparison(views, fits)
    run = []
    for row in chosen:
        one = simulate(row, overheads_of(row))
        run.append((one.ttft_s, one.tpot_s))
        step()
    return Comparison(views, fits, Predicted(tuple(chosen), np.array(run)))


def as_table(compared: Comparison) -> pd.DataFrame:
    """One line for each row: what it is, measured and predicted seconds of each split, why it misses, and what sim gave if it was run."""
    ships = compared.ships
    table = pd.DataFrame([asdict(row) for row in ships.rows])
    table["workers"] = ["+".join(map(str, row.workers)) if row.disaggregated else "" for row in ships.rows]
    for name, view in compared.views.items():
        for i, kind in enumerate(("ttft", "tpot")):
            table[f"{kind}_s_{name.replace(' ', '_')}"] = view.seconds[:, i]
        table[f"tokens_per_s_{name.replace(' ', '_')}"] = view.tokens_per_s
    table["cause"] = [cause(row, errors) for row, errors in zip(ships.rows, ships.errors, strict=True)]
    if compared.sampled is not None:
        run = dict(zip(compared.sampled.rows, compared.sampled.seconds, strict=True))
        for i, kind in enumerate(("ttft", "tpot")):
            table[f"{kind}_s_sim"] = [run[row][i] if row in run else math.nan for row in ships.rows]
    return table


def as_markdown(compared: Comparison, left: dict[str, int]) -> str:
    """The tables: errors by split and by group, causes of misses, sim itself, picks, and the rows left out."""
    views, ships = compared.views, compared.ships
    lines = []
    if compared.fits:
        lines += ["| engine held out | overhead of a pass, from the others |", "|---|---|"]
        for name, found in compared.fits.items():
            lines.append(f"| {name.split(', ')[1]} | {found.pass_s * 1e3:.2f} ms |")
        lines.append("")
    lines += [f"| rows | split | {ERRORS} |", "|---|---|---|---|---|---|---|---|---|"]
    for system in sorted({row.system for row in ships.rows}):
        for name, view in views.items():
            one = view.where(np.array([row.system == system for row in view.rows]))
            lines.append(f"| {system}: {len(one.rows)} | {name} | {_errors(one)} |")
    lines += ["", f"| system, engine, model, weights | rows | {ERRORS} |", "|---|---|---|---|---|---|---|---|---|"]
    groups = sorted({_group(row) for row in ships.rows})
    for group in groups:
        one = ships.where(np.array([_group(row) == group for row in ships.rows]))
        lines.append(f"| {group} | {len(one.rows)} | {_errors(one)} |")
    lines += ["", *_causes(ships)]
    if compared.sampled is not None:
        lines += ["", *_sampled(compared.sampled)]
    lines += ["", "| picks at a TPOT SLO | margin | miss | throughput of the best |", "|---|---|---|---|"]
    for name, view in views.items():
        for margin in (0.0, MARGIN):
            missed, picks, share = missed_picks(view, margin)
            if picks:
                lines.append(f"| {name} | {margin:.0%} | {missed} of {picks} ({missed / picks:.1%}) | {share:.0%} |")
    if left:
        lines += ["", "| rows left out | number |", "|---|---|", *(f"| {reason} | {number} |" for reason, number in sorted(left.items()))]
    return "\n".join(lines)


def _errors(one: Predicted) -> str:
    errors, rates = one.errors, one.throughput_errors
    (ttft, tpot), (late, slow) = np.abs(errors).mean(axis=0), errors.mean(axis=0)
    throughput = f"{np.abs(rates).mean():.1%} | {rates.mean():+.1%}"
    return f"{tpot:.1%} | {slow:+.1%} | {ttft:.1%} | {late:+.1%} | {np.median(np.abs(errors[:, 0])):.1%} | {throughput}"


def _group(row: Row) -> str:
    pd = ", PD" if row.disaggregated else ""
    dp = f", attention DP {row.attention_data_parallel}" if row.attention_data_parallel > 1 else ""
    return f"{row.system}, {row.engine} {row.version or '(no version)'}, {row.model}, {row.types or 'bfloat16'}{dp}{pd}"


def _causes(ships: Predicted) -> list[str]:
    limits = f"TTFT by more than {TARGETS[0]:.0%}, TPOT by more than {TARGETS[1]:.0%}"
    lines = [
        f"| misses, {limits} | rows | TTFT misses | bias | TPOT misses | bias |",
        "|---|---|---|---|---|---|",
    ]
    found = np.array([cause(row, errors) for row, errors in zip(ships.rows, ships.errors, strict=True)])
    for name in dict.fromkeys((*(name for name, _ in CAUSES), OTHER)):
        errors = ships.errors[found == name]
        if len(errors):
            late, slow = ((np.abs(errors[:, i]) > TARGETS[i]).sum() for i in (0, 1))
            lines.append(f"| {name} | {len(errors)} | {late} | {errors[:, 0].mean():+.1%} | {slow} | {errors[:, 1].mean():+.1%} |")
    missed = (np.abs(ships.errors) > TARGETS).sum(axis=0)
    return [*lines, f"| all, with the rows that keep both | {len(ships.rows)} | {missed[0]} | | {missed[1]} | |"]


def _sampled(run: Predicted) -> list[str]:
    ttft, tpot = np.abs(run.seconds / shipped(run.rows).seconds - 1).max(axis=0)
    return [
        "| rows run through sim itself | TTFT, largest difference | TPOT, largest difference |",
        "|---|---|---|",
        f"| {len(run.rows)} | {ttft:.2%} | {tpot:.2%} |",
    ]


def missed_picks(predicted: Predicted, margin: float) -> tuple[int, int, float]:
    """(picks that miss their TPOT SLO, picks, throughput of the picks over that of the best measured ones).

    For each system, engine, model, types, isl, osl and SLO: the GPUs and clients with the most clients per GPU whose predicted TPOT lies
    `margin` below the SLO. Groups in which nothing keeps the SLO, or everything, are left out.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, row in enumerate(predicted.rows):
        key = (row.system, row.engine, row.version, row.model, row.types, row.isl, row.osl, row.disaggregated)
        groups.setdefault(key, []).append(i)
    missed = picks = 0
    shares: list[float] = []
    for members in groups.values():
        for slo_s in SLOS_S:
            good = [i for i in members if predicted.rows[i].tpot_s <= slo_s]
            chosen = [i for i in members if predicted.seconds[i, 1] * (1 + margin) <= slo_s]
            if not chosen or not good or len(good) == len(members):
                continue
            load = {i: predicted.rows[i].clients / (predicted.rows[i].gpus * max(1, sum(predicted.rows[i].workers))) for i in members}
            pick = max(chosen, key=lambda i: (load[i] / predicted.seconds[i, 1], i))
            best = max(load[i] / predicted.rows[i].tpot_s for i in good)
            picks += 1
            missed += predicted.rows[pick].tpot_s > slo_s
            shares.append(load[pick] / predicted.rows[pick].tpot_s / best)
    return missed, picks, float(np.mean(shares)) if shares else float("nan")
