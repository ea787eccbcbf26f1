"""The verdict, the table and the report of `abkt plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from matplotlib.figure import Figure

from experiments.capacity.knee import ratio
from experiments.planning.run import PlanConfig, Prepared
from experiments.planning.search import PRUNED, Choice
from experiments.planning.space import Split
from experiments.report.page import Page, Section, Table, picture
from experiments.report.verdict import Verdict
from experiments.report.words import number, percent, plural

SAME = 1e-6  # relative difference of two prices that are the same
WHY = dict(zip(PRUNED, (PRUNED[0], f"they are {PRUNED[1]}", f"they are {PRUNED[2]}")))
COLUMNS = ("policy", "cluster", "USD/hour", "good/USD", "within SLO", "distortion")
OUTSIDE = 0.01  # share of requests outside of what the profile measured that is worth a sentence


def answer(choices: Sequence[Choice]) -> Verdict:
    """The cheapest choice, and by how much; of those with the same price the one with the least distortion is to be taken."""
    held = [choice for choice in choices if choice.split is not None]
    if not held:
        near = choices[0]
        return Verdict(
            "no_answer",
            None,
            f"No answer: no split within the budget meets the goal ({near.policy} on {near.hardware}: {near.reason}).",
            "Give a larger budget, a lower rate_per_s, a looser slo, or a lower goal_share.",
        )
    best = held[0]
    same = [choice for choice in held[1:] if choice.usd_per_hour <= best.usd_per_hour * (1 + SAME)]
    if same:
        pick = min((best, *same), key=lambda choice: choice.distortion)
        dearer = held[1 + len(same) :]
        more = f"; the next price is {number(dearer[0].usd_per_hour)}, for {_name(dearer[0])} on {dearer[0].split}" if dearer else ""
        return Verdict(
            "tie",
            pick.policy,
            f"{_names([best, *same])} cost the same, {number(best.usd_per_hour)} USD/hour ({_splits([best, *same])}): "
            f"take {pick.policy} on {pick.split} of {pick.hardware}, which has the least distortion ({number(pick.distortion)}){more}.",
            "Prices rise in steps of whole instances.",
        )
    if len(held) == 1:
        return Verdict("use", best.policy, f"{_use(best)}; no other meets the goal.", "")
    second = held[1]
    return Verdict(
        "use",
        best.policy,
        f"{_use(best)}; the next, {_name(second)} on {second.split}, costs {number(second.usd_per_hour - best.usd_per_hour)} USD/hour more "
        f"({percent(second.usd_per_hour / best.usd_per_hour - 1)}){_goodput(best, second)}.",
        "",
    )


def _name(choice: Choice) -> str:
    return f"{choice.policy} on {choice.hardware}"


def _names(choices: Sequence[Choice]) -> str:
    """The policies; with their hardware, if it is not the same for all."""
    alike = len({choice.hardware for choice in choices}) == 1
    words = [choice.policy if alike else _name(choice) for choice in choices]
    return ", ".join(words[:-1]) + f" and {words[-1]}"


def _splits(choices: Sequence[Choice]) -> str:
    return ", ".join(dict.fromkeys(str(choice.split) for choice in choices))


def _use(choice: Choice) -> str:
    return f"Use {choice.policy} on {choice.split} of {choice.hardware}: {number(choice.usd_per_hour)} USD/hour"


def _goodput(best: Choice, second: Choice) -> str:
    """How many more requests within the SLO a USD buys, with its interval over the parts, if there are several parts."""
    more, between = ratio(best.good_per_usd, second.good_per_usd)
    interval = f" [{number(between.low * 100)}, {number(between.high * 100)}]" if len(best.good_per_usd) > 1 else ""
    return f", and a USD buys {number(more * 100)} %{interval} more requests within the SLO"


def table(choices: Sequence[Choice], prepared: Prepared, verdict: Verdict) -> Table:
    """One row for each choice that has a split, the cheapest first. The note has the others, with the reason."""
    held = [choice for choice in choices if choice.split is not None]
    rows = [
        (
            choice.policy,
            f"{choice.split} {choice.hardware}",
            number(choice.usd_per_hour),
            number(sum(choice.good_per_usd) / len(choice.good_per_usd)),
            percent(choice.share),
            number(choice.distortion),
        )
        for choice in held
    ]
    best = next((i for i, choice in enumerate(held) if choice.policy == verdict.policy), None)
    return Table(COLUMNS, rows, notes(choices, prepared.unfit), best=best, left=("cluster",))


def notes(choices: Sequence[Choice], unfit: Mapping[str, str]) -> str:
    """How much was simulated, what was left out and why, and what a reader has to know about the figures."""
    within = sum(choice.within for choice in choices)
    inside = within - sum(sum(choice.pruned.values()) for choice in choices)
    counts = {why: sum(choice.pruned[why] for choice in choices) for why in PRUNED}
    left = [f"{number(count)} because {WHY[why]}" for why, count in counts.items() if count]
    beyond = sum(len(choice.tried.runs) for choice in choices) - inside
    said = [f"{_name(choice)}: {choice.reason}." for choice in choices if choice.split is None]
    said += [f"{gpu}: {reason}." for gpu, reason in unfit.items()]
    said += [
        f"Of {plural(within, 'combination')} of policy, hardware and split within the budget {number(inside)} were simulated and "
        f"{number(within - inside)} left out: {', '.join(left)}. {plural(beyond, 'larger cluster')} gave bounds; "
        f"{plural(sum(choice.tried.simulations() for choice in choices), 'simulation')} in all.",
        "Simulated, not validated on hardware; prices of hardware are assumptions. `good/USD`: requests within the SLO for each USD. "
        "`within SLO`: the least of all parts.",
    ]
    outside = [run["extrapolated_share"] for c in choices if c.split for run in c.tried.runs[c.split]]
    if outside and max(outside) > OUTSIDE:
        said.append(f"Up to {percent(max(outside))} of the requests lie outside of what the costs were measured on: extrapolated.")
    return " ".join(said)


def draw(choice: Choice, splits: Sequence[Split], width_in: float) -> Figure:
    """The splits of one choice within the budget: which met the goal, which missed it, and which were left out."""
    figure = Figure(figsize=(width_in, 0.6 * width_in))
    axes = figure.subplots()
    kinds = {
        "meets the goal": ([s for s in splits if s in choice.tried.met], "o", "#009E73"),
        "misses the goal": ([s for s in choice.tried.runs if s not in choice.tried.met], "X", "#D55E00"),
        "left out": ([s for s in splits if s not in choice.tried.runs], ".", "#BBBBBB"),
    }
    for label, (shown, marker, colour) in kinds.items():
        axes.plot([s.prefill for s in shown], [s.decode for s in shown], marker, color=colour, linestyle="none", label=label)
    if choice.split is not None:
        axes.annotate(f"{choice.split}", (choice.split.prefill, choice.split.decode), xytext=(6, 6), textcoords="offset points")
    axes.set_xlabel("instances that prefill")
    axes.set_ylabel("instances that decode")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.1)
    return figure


def page(config: PlanConfig, lead: str, choices: Sequence[Choice], prepared: Prepared, verdict: Verdict, facts: Mapping[str, str]) -> Page:
    how = (
        "A split has to meet the goal on every part of the workload, in all requests and in the later half of them. The search assumes "
        "that more instances of a role never do worse. It begins with the most instances that the budget allows, finds the fewest of each "
        "role with plenty of the other, and then tries splits from there, the cheapest first."
    )
    sections = [Section("The cheapest split of each policy", how, table=table(choices, prepared, verdict))]
    pick = next((c for c in choices if c.split is not None and c.policy == verdict.policy), None)
    if pick is not None:
        space = next(c.space for c in prepared.candidates if c.names == (pick.policy, pick.prefill_gpu, pick.decode_gpu))
        shown = picture(lambda width: draw(pick, space.splits(), width), f"Splits that were tried with {_name(pick)}")
        sections.append(Section(f"What was tried with {_name(pick)}", "", pictures=[shown]))
    return Page("The cheapest cluster", f"{lead[0].upper()}{lead[1:]}.", verdict, sections, facts)


def plain(config: PlanConfig, choices: Sequence[Choice], verdict: Verdict) -> dict[str, Any]:
    """plan.json."""
    kept = ("policy", "prefill_gpu", "decode_gpu", "usd_per_hour", "gpus", "good_per_usd", "distortion", "share", "reason", "within")
    return {
        "schema_version": 1,
        "verdict": asdict(verdict),
        "goal": {"share": config.goal_share, "max_distortion": config.max_distortion},
        "budget": {"max_gpus": config.max_gpus, "max_usd_per_hour": config.max_usd_per_hour},
        "validated": False,
        "simulations": sum(choice.tried.simulations() for choice in choices),
        "choices": [
            {
                **{name: getattr(c, name) for name in (*kept, "pruned")},
                "split": str(c.split) if c.split else None,
                "simulated": len(c.tried.runs),
            }
            for c in choices
        ],
    }


def rows(choices: Sequence[Choice]) -> list[dict[str, Any]]:
    """runs.parquet: one row for each simulation."""
    return [
        {
            "policy": choice.policy,
            "prefill_gpu": choice.prefill_gpu,
            "decode_gpu": choice.decode_gpu,
            "prefill": split.prefill,
            "decode": split.decode,
            "part": part,
            "meets": split in choice.tried.met,
            **run,
        }
        for choice in choices
        for split, runs in choice.tried.runs.items()
        for part, run in enumerate(runs)
    ]
