"""Trust in one line: the simulator's error beside the machine's own noise, and whether it picked the machine's best policy.

A pick counts only where the machine can tell its best policy from the simulator's pick, or, if they are the same, from the next best one:
where the paired 95 % interval of the goodput or of the mean TTFT does not contain 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from abkt.records import SLO
from experiments.lib import intervals
from experiments.report.verdict import Verdict
from experiments.study.ranking import Regret, StudyVerdict
from experiments.validation.folder import ValidationCase
from experiments.validation.scores import by_condition_of, hardware_verdict, together
from experiments.validation.targets import Target, too_little

CIRCULAR = "circular for prefill and decode"
CIRCULAR_SENTENCE = f"compute=paced is {CIRCULAR}: workers sleep the times of the profile that the simulator also uses."


@dataclass(frozen=True, slots=True)
class Choice:
    """simulated, hardware: the two picks under a condition; None where no policy keeps the distortion limits. told_apart: whether the
    machine can tell its best policy from the other pick, or from the next best one."""

    condition: str
    simulated: str | None
    hardware: str | None
    told_apart: bool

    @property
    def same(self) -> bool:
        return self.simulated == self.hardware


def choices(cases: Sequence[ValidationCase], regrets: Sequence[Regret], max_distortion: float, slo: SLO) -> list[Choice]:
    """The choice under each condition."""
    found = []
    groups = by_condition_of(cases)
    for r in regrets:
        group = {case.policy: case for case in groups[r.condition]}
        ranking = hardware_verdict(list(group.values()), max_distortion)
        other = r.simulated_pick if r.simulated_pick != r.hardware_best else _next(ranking)
        apart = not too_little(list(group.values())) and r.hardware_best is not None and other is not None
        found.append(
            Choice(r.condition, r.simulated_pick, r.hardware_best, apart and _differ(group[str(r.hardware_best)], group[str(other)], slo))
        )
    return found


def trust(met: Sequence[Target], made: Sequence[Choice], paced: bool) -> str:
    """The line."""
    errors = {target.name: target for target in met}
    parts = []
    for name, what in (("mean TTFT error", "TTFT"), ("mean E2E error", "E2E")):
        own = errors[name].noise
        noise = "the machine's own noise was not measured" if math.isnan(own) else f"the machine's own noise {_percent(own)}"
        parts.append(f"{what} {_percent(errors[name].value)} off ({noise})")
    counted = [choice for choice in made if choice.told_apart]
    if counted:
        right = sum(choice.same for choice in counted)
        others = len(made) - len(counted)
        rest = f"; under {others} more it cannot" if others else ""
        picks = (
            f"the simulator picked the machine's best policy under {right} of {len(counted)} conditions where the machine can tell{rest}"
        )
    else:
        picks = "the machine cannot tell the policies apart under any condition, so no pick counts"
    return f"Trust: {', '.join(parts)}; {picks}." + (f" {CIRCULAR_SENTENCE}" if paced else "")


def winner(made: Sequence[Choice], cases: Sequence[ValidationCase]) -> Verdict:
    """The machine's answer over all conditions: the policy that was best under each of them, if one was."""
    counted = [choice for choice in made if choice.told_apart]
    if not made or all(choice.hardware is None for choice in made):
        return Verdict("no_answer", None, "No answer: no policy keeps the distortion limits", "raise max_distortion, or add a finer policy")
    if not counted:
        why = too_little(cases) or "more repeats or a slower link would show differences"
        best = {choice.hardware for choice in made if choice.hardware}
        if too_little(cases) or len(best) != 1:
            return Verdict("no_answer", None, "No answer: the machine cannot tell the policies apart", why)
        (policy,) = best
        return Verdict("tie", policy, f"The policies cannot be told apart here; {policy} was ahead under every condition", why)
    names = {str(choice.hardware) for choice in counted}
    under = f"{len(counted)} of {len(made)} conditions"
    if len(names) == 1:
        (policy,) = names
        return Verdict("use", policy, f"Use {policy}: it was the machine's best policy under all conditions that tell ({under})", "")
    each = "; ".join(f"{choice.condition}: {choice.hardware}" for choice in counted)
    return Verdict("no_answer", None, "No one policy wins under every condition", each)


def plain(made: Sequence[Choice]) -> list[dict[str, Any]]:
    return [{**asdict(choice), "same": choice.same} for choice in made]


def _next(ranking: StudyVerdict) -> str | None:
    """The second of the feasible policies."""
    feasible = [standing.policy for standing in ranking.ranking if standing.feasible]
    return feasible[1] if len(feasible) > 1 else None


def _differ(a: ValidationCase, b: ValidationCase, slo: SLO) -> bool:
    one, other = together(a.measured, slo), together(b.measured, slo)
    places = intervals.paired_draws(len(one))
    pairs: Mapping[str, tuple[Any, Any]] = {name: (one[name].to_numpy(float), other[name].to_numpy(float)) for name in ("good", "ttft_s")}
    return any(not intervals.difference(x, y, np.nanmean, places).holds(0.0) for x, y in pairs.values())


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")
