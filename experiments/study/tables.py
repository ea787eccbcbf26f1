"""The tables of a study, for the terminal and for its report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from abkt.records import STAGES
from experiments.report.page import Table
from experiments.report.words import MINUS, NOTHING, change, ms, number, percent, seconds, size
from experiments.study.folder import Study

MEASURED = (*STAGES, "transfer", "ttft", "tpot", "e2e")


def policy_table(summary: Mapping[str, Any], compare: Mapping[str, Any]) -> Table:
    """The policies, best first: what was measured, and what the simulator had predicted."""
    rows, names = [], order(compare)
    reference = compare["verdict"]["policy"] or next(iter(compare["best"]), None)
    for name in names:
        run, said = summary["runs"][f"twin/real/{name}"], summary["runs"][f"twin/simulated/{name}"]
        rows.append(
            (
                name,
                f"{percent(run['good_share'])} ({percent(said['good_share'])})",
                f"{seconds(run['ttft_s']['mean'])} ({seconds(said['ttft_s']['mean'])})",
                against(compare, name, reference),
                percent(run["wire_bytes"] / run["raw_bytes"] if run["raw_bytes"] else None),
                number(run["distortion"].get("mean")),
                compare["refused"].get(name, "") or _standing(compare, name),
            )
        )
    columns = (
        *("policy", "within the SLO\n(predicted)", "mean TTFT\n(predicted)", f"mean TTFT\nagainst {reference}", "bytes\nof raw"),
        *("mean\ndistortion", "remark"),
    )
    best = names.index(reference) if reference in names else None
    note = f"Means over {compare['repeats']} repeats. In brackets: predicted; for the difference of mean TTFT, the 95 % interval."
    return Table(columns, rows, note, fold_after=None, best=best, left=("remark",))


def more_table(summary: Mapping[str, Any], compare: Mapping[str, Any]) -> Table:
    """Further figures of each policy, measured."""
    rows = []
    for name in order(compare):
        run = summary["runs"][f"twin/real/{name}"]
        rows.append(
            (
                *(name, number(run["goodput_per_s"]), seconds(run["ttft_s"]["p99"]), seconds(run["tpot_s"]["mean"])),
                *(seconds(run["e2e_s"]["mean"]), size(run["wire_bytes"]), number(run["distortion"].get("p99"))),
                percent((run.get("answers") or {}).get("rest")),
            )
        )
    columns = ("policy", "goodput\n(requests/s)", "p99 TTFT", "mean TPOT", "mean E2E", "sent", "p99\ndistortion", "answers\nright")
    return Table(columns, rows, "Answers right: share of the asked tokens that the decode side recalled from the KV it received.")


def stage_table(result: Mapping[str, Any]) -> Table:
    """Measured and predicted times of one policy, by stage."""
    rows = []
    for stage in MEASURED:
        found = result["stages"][stage]
        of = [(found[q]["measured_s"], found[q]["predicted_s"], found[q]["relative_error"]) for q in ("mean", "p99")]
        cells = [cell for was, said, error in of for cell in (ms(was), ms(said), change(error))]
        rows.append((stage, *cells, change(found["share_of_e2e"])))
    columns = (
        *("exposed time\n(ms)", "mean\nmeasured", "mean\npredicted", "mean\nerror", "p99\nmeasured", "p99\npredicted", "p99\nerror"),
        "error\nof E2E",
    )
    return Table(columns, rows, fold_after=None)


def fit_table(profile: Mapping[str, Any]) -> Table:
    rows = []
    for stage, fit in sorted(profile["fits"].items()):
        measured = ", ".join(f"{name} {number(low)} to {number(fit['high'][name])}" for name, low in fit["low"].items())
        rows.append((stage, ", ".join(fit["features"]), percent(fit["residual"]), number(fit["samples"]), measured))
    return Table(("cost", "linear in", "residual\nerror", "samples", "measured range"), rows, left=("linear in", "measured range"))


def scaleout_table(study: Study) -> Table:
    rows = []
    for routing in study.summary["routings"]:
        for bitrate in study.summary["bitrates"]:
            run = study.run(f"scaleout/{routing}-{bitrate}")
            rows.append(
                (
                    *(routing, bitrate, number(run["goodput_per_s"]), percent(run["good_share"]), seconds(run["ttft_s"]["mean"])),
                    *(seconds(run["ttft_s"]["p99"]), seconds(run["tpot_s"]["p99"]), size(run["wire_bytes"])),
                    *(number(run["distortion"].get("mean")), number(run["requests"]["rejected"])),
                )
            )
    columns = (
        *("routing", "bitrate", "goodput\n(requests/s)", "within\nthe SLO", "mean TTFT", "p99 TTFT", "p99 TPOT", "sent"),
        *("mean\ndistortion", "rejected"),
    )
    return Table(columns, rows, left=("bitrate",))


def order(compare: Mapping[str, Any]) -> list[str]:
    """The policies, best first; those that do not keep the limits last."""
    return [standing["policy"] for standing in compare["hardware"]["ranking"]]


def against(compare: Mapping[str, Any], name: str, reference: str | None) -> str:
    """The relative difference of mean TTFT to the reference, with its interval."""
    for pair in compare["pairs"]:
        if {pair["a"], pair["b"]} == {name, reference} and name != reference:
            ends = [pair["ttft"][key] for key in ("estimate", "low", "high")]
            if any(not isinstance(end, int | float) or not math.isfinite(end) for end in ends):
                return NOTHING
            if pair["b"] == name:  # seen from the reference
                ends = [1 / (1 + ends[i]) - 1 for i in (0, 2, 1)]
            return f"{ends[0] * 100:+.0f} % [{ends[1] * 100:+.0f}, {ends[2] * 100:+.0f}]".replace("-", MINUS)
    return NOTHING


def _standing(compare: Mapping[str, Any], name: str) -> str:
    if name in compare["best"]:
        return "best" if len(compare["best"]) == 1 else "among the best"
    winners = [pair["winner"] for pair in compare["pairs"] if pair["winner"] and name in (pair["a"], pair["b"]) and pair["winner"] != name]
    return f"behind {', '.join(w for w in order(compare) if w in winners)}"
