"""The report of a study, drawn from its stored files alone: figures as PDF and PNG, and one self-contained report.html.

`python -m experiments.study.report [FOLDER]` draws a study again; without a folder, the newest below outputs/study.
"""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from abkt.records import STAGES
from experiments.figures.style import save, sheet
from experiments.lib.errors import exit_code
from experiments.lib.results import write_text
from experiments.study.figures import bandwidth, breakdown, predicted_measured, scaleout, ttft_cdf
from experiments.study.folder import Study, load_study
from experiments.study.ranking import TAIL

FIGURES: tuple[tuple[str, ModuleType], ...] = (
    ("Where the time goes", breakdown),
    ("Time to first token", ttft_cdf),
    ("Predicted against measured", predicted_measured),
    ("Bandwidth and bitrate over time", bandwidth),
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
    pictures = []
    for title, module in FIGURES:
        name = module.__name__.rpartition(".")[2]
        progress(name)
        with sheet():
            png = save(module.draw(study), folder / "figures", name)
        data = base64.b64encode(png.read_bytes()).decode()
        pictures.append({"name": name, "title": title, "caption": " ".join((module.__doc__ or "").split()), "data": data})
    write_text(folder / "report.html", render(study, pictures))
    return folder / "report.html"


def render(study: Study, pictures: list[dict[str, str]]) -> str:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"ms": ms, "percent": percent, "figure": figure, "size": size}
    template = environment.get_template("report.html.j2")
    return template.render(
        study=study,
        summary=study.summary,
        compare=study.compare,
        manifest=study.manifest,
        answer=answer(study.compare),
        trust=trust(study.compare),
        stages=(*STAGES, "transfer", "ttft", "tpot", "e2e"),
        figures={picture["name"]: picture for picture in pictures},
        tail=TAIL,
    )


def answer(compare: Mapping[str, Any]) -> str:
    """Which policy is best: one or two sentences."""
    hardware, simulated, limit = compare["hardware"], compare["simulated"], f"a mean distortion of {figure(compare['max_distortion'])}"
    if hardware["pick"] is None:
        return f"No policy keeps within {limit} on this machine."
    sentence = (
        f"Within {limit}, the best policy on this machine is {hardware['pick']}: {_other_words(hardware['reason'], hardware['pick'])}."
    )
    if simulated["pick"] == hardware["pick"]:
        return f"{sentence} The simulator picks it as well."
    return f"{sentence} The simulator picks {simulated['pick'] or 'none'} instead."


def trust(compare: Mapping[str, Any]) -> str:
    """Whether the simulator can be trusted: its largest errors over the policies, and what its choice costs on hardware."""
    policies, regret = compare["policies"], compare["regret"]
    worst = [(f"{q} {stage.upper()}", *_worst(policies, stage, q)) for stage, q in (("ttft", "mean"), ("ttft", "p99"), ("e2e", "mean"))]
    errors = ", ".join(f"{percent(error)} on {what} ({policy})" for what, error, policy in worst)
    sentence = f"The simulator's largest errors over the policies are {errors}."
    if regret["violates"]:
        return f"{sentence} Its pick breaks the distortion limit on hardware, so it must not be followed here."
    if regret["goodput_share"] is None:
        return sentence
    if regret["simulated_pick"] == regret["hardware_best"]:
        return f"{sentence} Following it costs nothing here: regret 0."
    lost, later = regret["goodput_share"], regret["ttft_s"]
    cost = f"{percent(lost)} of goodput and {ms(later)} ms of mean TTFT on hardware"
    return f"{sentence} Following it would cost {cost}: this is its decision regret."


def _worst(policies: Mapping[str, Any], stage: str, quantile: str) -> tuple[float | None, str]:
    errors = [(c["stages"][stage][quantile]["relative_error"], policy) for policy, c in policies.items()]
    return max(errors, key=lambda e: abs(e[0] or 0.0))


def _other_words(reason: str, policy: str) -> str:
    """The reason without the policy's name at its start, which the sentence has already given."""
    return "it " + reason.removeprefix(policy).strip()


def ms(seconds: float | None) -> str:
    return "–" if seconds is None or math.isnan(seconds) else f"{seconds * 1e3:,.1f}"


def percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{share:+.1%}".replace("-", "\N{MINUS SIGN}")


def figure(value: Any) -> str:
    """Three significant digits; other values unchanged."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def size(count: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.3g} {unit}"
    return f"{count:.0f} B"


def newest() -> Path:
    studies = sorted(path.parent for path in Path("outputs/study").glob("*/compare.json"))
    if not studies:
        raise ValueError("there is no study below outputs/study; run `abkt study` first")
    return studies[-1]


def main(arguments: list[str]) -> int:
    return exit_code(lambda: print(write_report(Path(arguments[0]) if arguments else newest())))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
