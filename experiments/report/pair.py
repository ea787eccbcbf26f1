"""Two runs of the same requests beside each other: `measured, predicted, error` if one predicts the other, else `A, B, change`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abkt.records import OUTCOMES, STAGES
from experiments.lib.results import read_json, read_records
from experiments.report import words
from experiments.report.page import Page, Section, Table, picture
from experiments.report.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LEAST = 20  # requests; below, an interval over requests says little
TAIL = 8.0  # p99 distortion may be this many times the limit of the mean
NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "E2E", "transfer": "transfer"}


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two runs. name: `measured`, `predicted`, `A` or `B`. label: its folder. distortion: mean and p99."""

    name: str
    label: str
    requests: pd.DataFrame
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]
    distortion: tuple[float, float]

    def keeps(self, limit: float) -> bool:
        return self.distortion[0] <= limit and self.distortion[1] <= TAIL * limit


def sides(a: Path, b: Path) -> tuple[Side, Side]:
    """The two runs, named by what they are."""
    found = [read_records(folder / "requests.parquet") for folder in (a, b)]
    computed = [set(frame["compute"]) if "compute" in frame else {""} for frame in found]
    predicts = computed[1] == {"simulated"} and "simulated" not in computed[0]
    names = ("measured", "predicted") if predicts else ("A", "B")
    return (_side(names[0], a, found[0]), _side(names[1], b, found[1]))


def _side(name: str, folder: Path, requests: pd.DataFrame) -> Side:
    known = {file: dict(read_json(folder / file)) if (folder / file).is_file() else {} for file in ("summary.json", "manifest.json")}
    weighted = requests.distortion_token_weighted[requests.outcome == OUTCOMES[0]]
    return Side(
        name,
        str(folder),
        requests,
        known["summary.json"],
        known["manifest.json"],
        (float(weighted.mean()), float(weighted.quantile(0.99))),
    )


def differences(one: Mapping[str, Any], other: Mapping[str, Any], name: str = "") -> list[str]:
    """Keys of two configurations with different values, such as `bitrate: embedded, int4`."""
    lines: list[str] = []
    for key in dict.fromkeys((*one, *other)):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{name}{key}.")
        elif a != b:
            lines.append(f"{name}{key}: {a}, {b}")
    return lines


def what_differs(a: Side, b: Side) -> str:
    """What the two runs differ in: the choices of groups, or the keys of their configurations."""
    if not a.manifest or not b.manifest:
        return ""
    found = differences(a.manifest["choices"], b.manifest["choices"]) or [
        line
        for line in differences(a.manifest["config"], b.manifest["config"])
        if line.partition(":")[0] not in ("progress", "plot", "csv", "trace")
    ]
    return "; ".join(found[:6]) + (f"; and {len(found) - 6} more" if len(found) > 6 else "")


def stages_table(result: Mapping[str, Any], a: Side, b: Side) -> Table:
    """Mean and p99 of each stage, in milliseconds."""
    change = "error" if b.name == "predicted" else "change"
    columns = ["time in ms"]
    for statistic in ("mean", "p99"):
        columns += [f"{statistic}\n{a.name}", f"\n{b.name}", f"\n{change} [95 %]"]
    rows = []
    for stage, errors in result["stages"].items():
        cells = [NAMES.get(stage, stage)]
        for statistic in ("mean", "p99"):
            pair = errors[statistic]
            cells += [words.ms(pair["measured_s"]), words.ms(pair["predicted_s"]), _change(pair)]
        rows.append((*cells, words.change(errors["share_of_e2e"])))
    note = f"{change}: {b.name} against {a.name}. The intervals are a paired bootstrap over the requests of one run each, not over repeats."
    return Table((*columns, f"\n{change} of mean E2E"), rows, note)


def runs_table(a: Side, b: Side) -> Table:
    """The two runs as wholes."""
    rows = []
    for side in (a, b):
        s = side.summary
        share, goodput = (words.percent(s["good_share"]), words.number(float(s["goodput_per_s"]))) if s else (words.NOTHING,) * 2
        rows.append(
            (
                side.name,
                share,
                goodput,
                words.size(float(side.requests.wire_bytes.sum())),
                words.number(side.distortion[0]),
                words.number(side.distortion[1]),
                side.label,
            )
        )
    columns = ("run", "within the SLO", "goodput (requests/s)", "sent", "mean distortion", "p99 distortion", "folder")
    return Table(columns, rows, left=("folder",))


def verdict(result: Mapping[str, Any], a: Side, b: Side, max_distortion: float) -> Verdict | None:
    """The faster of two runs that keep the limits of distortion. None where one predicts the other: then there is nothing to choose."""
    if b.name == "predicted":
        return None
    count = result["requests"]["compared"]
    if count < LEAST:
        few = f"{words.plural(count, 'request')} completed in both runs"
        return Verdict("no_answer", None, f"No winner: only {few}.", f"Compare at least {LEAST} requests.")
    within = [side for side in (a, b) if side.keeps(max_distortion)]
    limit = f"a mean distortion of {words.number(max_distortion)} and a p99 of {words.number(TAIL * max_distortion)}"
    if not within:
        return Verdict("no_answer", None, f"No winner: neither run keeps {limit}.", "Compare finer rates, or set max_distortion.")
    found = {name: result["stages"][name]["mean"] for name in ("ttft", "e2e")}
    said = " and ".join(f"{NAMES[name]} {_change(pair)}" for name, pair in found.items())
    said = f"B against A, means with 95 % intervals: {said}"
    signs = {name: _sign(pair) for name, pair in found.items()}
    if len(within) == 1:
        alone, other = within[0], b if within[0] is a else a
        return Verdict("use", alone.name, f"Use {alone.name}: it alone keeps {limit}; {other.name} does not ({said}).", "")
    if {1, -1} <= set(signs.values()):
        low = {name: (b if sign < 0 else a).name for name, sign in signs.items()}
        sentence = f"No winner: {low['ttft']} has the lower mean TTFT, {low['e2e']} the lower mean E2E ({said})."
        return Verdict("no_answer", None, sentence, "Choose by the time that matters to you.")
    least = a if a.distortion[0] <= b.distortion[0] else b
    costs = f"Mean distortion: A {words.number(a.distortion[0])}, B {words.number(b.distortion[0])}; both keep {limit}."
    if not any(signs.values()):
        sentence = f"No winner: A and B cannot be told apart ({said}); take {least.name}, which has no more distortion."
        return Verdict("tie", least.name, sentence, costs)
    faster = b if sum(signs.values()) < 0 else a
    return Verdict("use", faster.name, f"Use {faster.name}: it is faster ({said}).", costs)


def page(result: Mapping[str, Any], a: Side, b: Side, found: Verdict | None, facts: Mapping[str, str]) -> Page:
    counts = result["requests"]
    differ = what_differs(a, b)
    lead = f"{words.plural(counts['compared'], 'request')} completed in both runs." + (f" The runs differ in {differ}." if differ else "")
    if found is None:
        lead = f"{prediction_sentence(result)} {lead}"
    both = [side.requests[side.requests.outcome == OUTCOMES[0]] for side in (a, b)]
    plots = [
        picture(lambda width: draw_cdf(a, b, both, width), f"TTFT of {a.name} and {b.name}", "Time to first token."),
        picture(lambda width: draw_stages(a, b, both, width), "Mean exposed time of each stage", "Mean exposed time of each stage."),
    ]
    sections = [
        Section("The two runs", table=runs_table(a, b), pictures=plots),
        Section("Stage by stage", table=stages_table(result, a, b)),
    ]
    title = "A prediction beside its measurement" if found is None else "Two runs of the same requests"
    return Page(title, lead, found, sections, facts)


def prediction_sentence(result: Mapping[str, Any]) -> str:
    """How far a prediction is off."""
    said = ", ".join(f"mean {NAMES[name]} {_change(result['stages'][name]['mean'])}" for name in ("ttft", "e2e"))
    return f"Error of the prediction: {said}."


def as_json(a: Side, b: Side, found: Verdict | None) -> dict[str, Any]:
    """What compare.json has besides the stages."""
    return {"names": [a.name, b.name], "differ": what_differs(a, b), "verdict": asdict(found) if found else None}


def legend(side: Side, other: Side) -> str:
    """The name of a run in a plot, with the choices that the other run has not: `A: int4`."""
    if not side.manifest or not other.manifest:
        return side.name
    own, theirs = side.manifest["choices"], other.manifest["choices"]
    return ": ".join((side.name, *[", ".join(own[group] for group in own if own[group] != theirs.get(group))])).removesuffix(": ")


def draw_cdf(a: Side, b: Side, both: list[pd.DataFrame], width_in: float) -> Figure:
    import numpy as np
    from matplotlib.figure import Figure

    from experiments.report.run import limit_line

    figure = Figure(figsize=(width_in, 3.2))
    axes = figure.subplots()
    for side, other, frame, colour, line in zip((a, b), (b, a), both, ("#0072B2", "#D55E00"), ("-", "--")):
        found = np.sort(frame.ttft_s.to_numpy(float))
        axes.step(found, np.arange(1, len(found) + 1) / len(found), where="post", color=colour, linestyle=line, label=legend(side, other))
    axes.set(xlabel="TTFT (s)", ylabel="share of requests", ylim=(0, 1.02), xlim=(0, None))
    limits = [side.summary["slo"]["ttft_s"] for side in (a, b) if side.summary.get("slo")]
    if len(set(limits)) == 1:
        limit_line(axes, limits[0], max(float(frame.ttft_s.max()) for frame in both))
    axes.legend(loc="center right")
    return figure


def draw_stages(a: Side, b: Side, both: list[pd.DataFrame], width_in: float) -> Figure:
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, 3.2))
    axes = figure.subplots()
    places = np.arange(len(STAGES))
    for side, other, frame, colour, shift in zip((a, b), (b, a), both, ("#0072B2", "#D55E00"), (-0.2, 0.2)):
        axes.barh(
            places + shift, [float(frame[f"{stage}_exposed_s"].mean()) for stage in STAGES], 0.38, color=colour, label=legend(side, other)
        )
    axes.set_yticks(places, STAGES)
    axes.invert_yaxis()
    axes.set(xlabel="mean exposed time (s)", xlim=(0, None))
    axes.grid(axis="y", visible=False)
    axes.legend()
    return figure


def _change(pair: Mapping[str, float]) -> str:
    bounds = words.interval(pair["low"], pair["high"])
    return words.change(pair["relative_error"]) + (f" {bounds.removesuffix(' %')}" if bounds != words.NOTHING else "")


def _sign(pair: Mapping[str, float]) -> int:
    """−1 or 1 if the whole interval lies below or above 0, otherwise 0."""
    low, high = pair["low"], pair["high"]
    if math.isnan(low) or math.isnan(high):
        return 0
    return -1 if high < 0 else 1 if low > 0 else 0
