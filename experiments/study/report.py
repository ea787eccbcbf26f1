"""The report of a study, drawn from its stored files alone: figures as PDF and PNG, and one self-contained report.html.

`python -m experiments.study.report [FOLDER]` draws a study again; without a folder, the newest below outputs/study.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.figures.style import save, sheet
from experiments.lib.errors import exit_code
from experiments.lib.results import write_text
from experiments.report.page import NARROW_IN, WIDE_IN, Page, Picture, Section, environment, origin, png
from experiments.report.verdict import Verdict
from experiments.report.words import link, number, percent, plural, seconds
from experiments.study import tables
from experiments.study.figures import bandwidth, breakdown, predicted_measured, scaleout, ttft_cdf
from experiments.study.folder import Study, capacity, load_study
from experiments.study.ranking import TAIL

TITLE = "Which KV-transfer policy should this cluster use, and can that answer be trusted?"
POLICIES, STAGES, NOTES = "The policies on this machine", "Can the simulator be trusted?", "What was scaled, emulated or left out"
SCALEOUT = "Scale-out, not validated on hardware here"
FIGURES: tuple[tuple[str, ModuleType], ...] = (
    ("Where the time goes", breakdown),
    ("Time to first token", ttft_cdf),
    ("Bandwidth and bitrate over time", bandwidth),
    ("Predicted against measured", predicted_measured),
    ("Scale-out, in the simulator alone", scaleout),
)


def write_report(folder: Path, progress: Callable[[str], None] = lambda name: None) -> Path:
    """Draw figures/*.pdf and figures/*.png and write report.html; returns its path.

    Parameters
    ----------
    folder : of a complete study.
    progress : called with the name of each figure before it is drawn.

    Raises
    ------
    ValueError
        One line, where the folder is not a complete study.
    """
    study = load_study(folder)
    pictures = {}
    for title, module in FIGURES:
        name = module.__name__.rpartition(".")[2]
        progress(name)
        with sheet():
            wide = save(module.draw(study, WIDE_IN), folder / "figures", name).read_bytes()
        narrow = png(lambda width_in, module=module: module.draw(study, width_in), NARROW_IN)  # type: ignore[misc]
        pictures[name] = Picture(wide, title, " ".join((module.__doc__ or "").split()), narrow)
    write_text(folder / "report.html", render(study, pictures))
    return folder / "report.html"


def render(study: Study, pictures: Mapping[str, Picture]) -> str:
    summary, compare = study.summary, study.compare
    page = Page(
        title=TITLE,
        lead=lead(summary),
        verdict=Verdict(**summary["verdict"]),
        sections=[
            Section(POLICIES, table=tables.policy_table(summary, compare)),
            Section("Where the time goes", pictures=[pictures["breakdown"]]),
            Section("Time to first token, and the link", pictures=[pictures["ttft_cdf"], pictures["bandwidth"]]),
            Section(STAGES, trust_text(summary), pictures=[pictures["predicted_measured"]]),
            Section(SCALEOUT, scaleout_text(summary), table=tables.scaleout_table(study), pictures=[pictures["scaleout"]]),
            Section(NOTES, points=[*scaled(summary), *summary["notes"]]),
        ],
        facts={**origin(study.manifest), **again(summary)},
    )
    compared = {
        policy: (result["requests"]["compared"], result["requests"]["measured"], tables.stage_table(result))
        for policy, result in compare["policies"].items()
    }
    return (
        environment(Path(__file__).parent)
        .get_template("report.html.j2")
        .render(
            page=page,
            trust=summary["trust"]["sentence"],
            details=compared,
            fits=tables.fit_table(study.profile),
            more=tables.more_table(summary, compare),
            policies_title=POLICIES,
            stages_title=STAGES,
        )
    )


def lead(summary: Mapping[str, Any]) -> str:
    """What was run, and what `best` means, in a few sentences."""
    slo, limit, busy = summary["slo"], summary["max_distortion"], summary["utilisation"]
    return (
        f"{plural(int(summary['scaling']['requests']), 'request')} a run, {summary['repeats']} runs of each policy in random order, over "
        f"{link(capacity(summary['link']))}. The prefill worker computed for {percent(round(busy['prefill'], 2))} of the time (planned: "
        f"{percent(round(busy['planned']['prefill'], 2))}), and the decode worker was busy for {percent(round(busy['decode'], 2))} "
        f"({percent(round(busy['planned']['decode'], 2))}). The best policy has most requests within the SLO (TTFT "
        f"{seconds(slo['ttft_s'])}, TPOT {seconds(slo['tpot_s'])}) among those with a mean distortion of at most {number(limit)} and a "
        f"p99 of at most {number(TAIL * limit)}; where that cannot be told, the lowest mean TTFT. TTFT ends with the first token of the "
        "decode side."
    )


def trust_text(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['trust']['sentence']}\n\nThe same requests and the same policy objects ran in the simulator, before the machine ran "
        "them, and then on real processes. Errors are predicted minus measured, relative to measured. Error of E2E: the mean error as a "
        "share of the measured mean end-to-end time, which says whether the error of a stage matters."
    )


def scaleout_text(summary: Mapping[str, Any]) -> str:
    facts, slo = ", ".join(f"{name}: {value}" for name, value in summary["scaleout"].items()), summary["scaleout_slo"]
    return f"In the simulator alone. {facts}. SLO: TTFT {seconds(slo['ttft_s'])}, TPOT {seconds(slo['tpot_s'])}."


def scaled(summary: Mapping[str, Any]) -> list[str]:
    """How the load was chosen, and what was clipped or extrapolated, in words."""
    twin, runs = summary["scaling"], summary["runs"]
    said = [*summary["chosen"], f"Compute: {summary['compute']}."]
    if "isl_mean_before" in twin:
        said.append(
            f"Of {plural(int(twin['requests_in_trace']), 'request')} of the trace, {int(twin['requests'])} were taken. Prompts: "
            f"{number(round(twin['isl_mean_before']))} tokens in the trace and {number(round(twin['isl_mean_after']))} here on average, "
            f"{_clipped(twin['isl_clipped'])} clipped to the limits. Answers: {number(round(twin['osl_mean_before']))} and "
            f"{number(round(twin['osl_mean_after']))} tokens, {_clipped(twin['osl_clipped'])} clipped."
        )
    beyond = {name.rpartition("/")[2]: run["extrapolated_share"] for name, run in runs.items() if name.startswith("twin/simulated/")}
    worst = max(beyond, key=lambda name: beyond[name])
    said.append(
        f"The profile was extrapolated beyond its measured range for up to {percent(beyond[worst])} of the simulated requests ({worst})."
        if beyond[worst] > 0
        else "No cost of the simulated twin lies outside of what the profile has measured."
    )
    minutes = summary["minutes"]
    said.append(
        f"The study was to take {minutes['asked']:.0f} minutes; {minutes['planned']:.1f} were planned after the profile, and it took "
        f"{minutes['actual']:.1f} before this report was drawn."
    )
    return said


def again(summary: Mapping[str, Any]) -> dict[str, str]:
    return {"the same load again": summary["again"]} if summary["again"] else {}


def _clipped(count: float) -> str:
    return "none was" if count == 0 else f"{int(count)} was" if count == 1 else f"{int(count)} were"


def newest() -> Path:
    studies = sorted(path.parent for path in Path("outputs/study").glob("*/compare.json"))
    if not studies:
        raise ValueError("there is no study below outputs/study; run `abkt study` first")
    return studies[-1]


def main(arguments: list[str]) -> int:
    return exit_code(lambda: print(write_report(Path(arguments[0]) if arguments else newest())))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
