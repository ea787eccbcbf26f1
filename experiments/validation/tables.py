"""The tables of a validation, on the terminal, in report.html and in the documents. compute=paced is marked as circular in each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report import words
from experiments.report.page import Table
from experiments.validation.targets import Target
from experiments.validation.trust import CIRCULAR, CIRCULAR_SENTENCE, Choice

SLEPT = ("prefill", "decode")  # the stages of compute=paced whose times are those of the profile
NOISE = "Noise: how far one repeat on the machine lies from the mean of the others; – where it was not measured."


def targets_table(met: Sequence[Target], paced: bool) -> Table:
    rows = [
        (
            target.name,
            words.percent(target.value),
            words.interval(target.interval.low, target.interval.high),
            words.percent(target.target),
            words.percent(target.noise),
            target.words,
        )
        for target in met
    ]
    return Table(("what", "value", "95 % interval", "target", "noise", "answer"), rows, _note(paced), left=("answer",))


def conditions_table(
    rows: Sequence[Mapping[str, Any]], loads: Mapping[str, Mapping[str, float]], made: Sequence[Choice], paced: bool
) -> Table:
    """A row for each condition: planned and measured utilisation, error and noise of queueing, TTFT and E2E, and the two picks."""
    of = {(row["condition"], row["stage"]): row for row in rows}
    cells = []
    for choice in made:
        load = loads[choice.condition]
        pairs = [of[choice.condition, stage] for stage in ("queue", "ttft", "e2e")]
        apart = "" if choice.told_apart else " (cannot tell)"
        cells.append(
            (
                choice.condition,
                words.percent(load["planned"]),
                words.percent(load["predicted"]),
                words.percent(load["measured"]),
                *(f"{words.percent(pair['error'])} ({words.percent(pair['noise'])})" for pair in pairs),
                choice.simulated or "none",
                (choice.hardware or "none") + apart,
            )
        )
    columns = ("condition", "planned", "predicted", "measured", "queueing", "TTFT", "E2E", "simulator picks", "machine's best")
    note = (
        "Utilisation of prefill: planned with the deepest encoding, predicted and measured as the mean over the policies. Errors (noise) "
        f"of means, over the policies. {_note(paced)}"
    )
    return Table(columns, cells, note, left=("simulator picks", "machine's best"))


def stages_table(rows: Sequence[Mapping[str, Any]], paced: bool) -> Table:
    cells = [
        (
            f"{row['stage']} ({CIRCULAR.partition(' ')[0]})" if paced and row["stage"] in SLEPT else row["stage"],
            row["quantile"],
            words.count(int(row["cases"])),
            words.seconds(row["measured_s"]),
            *(words.percent(row[key]) for key in ("error", "bias", "worst", "noise")),
        )
        for row in rows
        if row["cases"]
    ]
    columns = ("stage", "quantile", "cases", "measured", "error", "bias", "worst", "noise")
    return Table(columns, cells, f"Stages with less than 1 % of the end-to-end time are left out. {_note(paced)}", fold_after=None)


def markdown(table: Table) -> str:
    """A table of the documents."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def document_row(name: str, found: Mapping[str, Any]) -> list[list[str]]:
    """The rows of docs/results.md for one validation: a row for each condition. found: its validation.json."""
    compute = f"{name}, {CIRCULAR}" if found["compute"] == "paced" else name
    of = {(row["condition"], row["stage"]): row for row in found["conditions"]}
    rows = []
    for condition, load in found["loads"].items():
        cells = [of[condition, stage] for stage in ("queue", "ttft", "e2e")]
        choice = next(made for made in found["choices"] if made["condition"] == condition)
        said = "yes" if choice["same"] else f"no: {choice['simulated'] or 'none'}, {choice['hardware'] or 'none'}"
        figures = [text for cell in cells for text in (words.percent(_known(cell["error"])), words.percent(_known(cell["noise"])))]
        util = f"{words.percent(_known(load['planned']))}, {words.percent(_known(load['measured']))}"
        rows.append([f"{condition} ({compute})", util, *figures, said if choice["told_apart"] else "cannot tell"])
    return rows


DOCUMENT_COLUMNS = ("condition", "utilisation planned, measured", "queueing", "noise", "TTFT", "noise", "E2E", "noise", "right pick")


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def _note(paced: bool) -> str:
    return f"{CIRCULAR_SENTENCE} {NOISE}" if paced else NOISE
