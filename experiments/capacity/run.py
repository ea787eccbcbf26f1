"""A run of `abkt capacity`: the knee of every policy on every part of the workload, then the goodput at rates around them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from abkt.ranges import bound
from abkt.records import SLO
from experiments.capacity.bisection import expected_tries
from experiments.capacity.goal import Goal
from experiments.capacity.knee import Figures, Knee, Search, search_chain
from experiments.capacity.parts import FEWEST, Part, parts, plain_workload, prefill_rate_per_s, run_part
from experiments.lib.progress import bar
from experiments.lib.simulation import SimulateConfig, build_simulation
from experiments.lib.verb import VerbCall
from experiments.sweeps.chains import Chain, Task, run_chains
from experiments.sweeps.grid import Axis, points
from experiments.sweeps.point import configured, workload_requests
from experiments.sweeps.pools import PoolSpec, open_pool

if TYPE_CHECKING:
    from pydantic import ConfigDict

FIRST = 0.7  # where a search begins, as a share of the rate that the prefill nodes compute without waiting
AROUND = (0.3, 1.15)  # the curve goes from this share of the lowest knee to this share of the highest


@dataclass(frozen=True, slots=True)
class CapacityConfig:
    """What to search.

    Parameters
    ----------
    policies : choices of the group bitrate.
    goal_share, max_distortion : the goal, see experiments.capacity.goal.
    requests : requests of each run.
    repeats : parts of the workload; each policy is searched on each of them.
    tolerance : relative width of the bracket at which a search ends.
    curve_rates : rates at which goodput is drawn; 0 for none.
    pool, workers, pool_options : see PoolSpec.
    plot, csv : also write the figure and report.html, and the runs as CSV.

    The simulation's own keys are allowed here and are read for each policy.
    """

    policies: list[str]
    goal_share: float
    max_distortion: float
    requests: int
    repeats: int
    tolerance: float
    curve_rates: int
    pool: str
    pool_options: dict[str, Any] | None
    workers: int | None
    plot: bool
    csv: bool
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "ignore"}

    def __post_init__(self) -> None:
        if not self.policies or len(set(self.policies)) < len(self.policies):
            raise ValueError(f"policies are {self.policies}; give each policy once, such as policies=[raw,int4,embedded]")
        bound(self, "requests", least=FEWEST)
        bound(self, "repeats", least=2, most=100)  # an interval needs several
        bound(self, "tolerance", least=0.001, most=0.5)
        bound(self, "curve_rates", least=0, most=100)
        self.goal()
        self.spec()

    def goal(self) -> Goal:
        return Goal(self.goal_share, self.max_distortion)

    def spec(self) -> PoolSpec:
        return PoolSpec(self.pool, self.workers, self.pool_options or {})


@dataclass(frozen=True, slots=True)
class Curve:
    """Goodput of one policy by rate: the mean over the parts, and each part's own."""

    rates_per_s: tuple[float, ...]
    goodput_per_s: tuple[tuple[float, ...], ...]  # for each rate one value of each part


@dataclass(frozen=True, slots=True)
class CapacityResult:
    """knees, curves: policy -> what was found. parts: of the workload. simulated: number of simulations."""

    knees: dict[str, Knee]
    curves: dict[str, Curve]
    parts: tuple[Part, ...]
    rows: tuple[Figures, ...]

    @property
    def simulated(self) -> int:
        return len(self.rows)


def bitrate_points(verb: str, policies: Sequence[str], run: VerbCall, requests: int) -> dict[str, dict[str, Any]]:
    """Policy -> plain configuration of a simulation with it. requests: how many a synthetic workload makes.

    Raises ValueError, one line, for an unknown policy, a bitrate that was given beside the policies, or a closed loop.
    """
    for argument in run.arguments:
        if argument.startswith("bitrate"):
            raise ValueError(f"{argument}: this verb compares several policies; give policies=[raw,int4] with the names of conf/bitrate")
        if argument.startswith("workload.requests="):
            raise ValueError(f"{argument}: give requests=N, the requests of each run; a synthetic workload makes as many as are needed")
    made = points(verb, run.arguments, [Axis("bitrate", tuple(policies), True)])
    return {str(point.place["bitrate"]): plain_workload(point.config, requests) for point in made}


def prepare(config: CapacityConfig, run: VerbCall) -> tuple[dict[str, dict[str, Any]], SimulateConfig, tuple[Part, ...], float]:
    """(the policies' configurations, one of them as an object, the parts, the rate at which searches begin). All input is checked here."""
    made = bitrate_points(run.verb, config.policies, run, config.requests * config.repeats)
    simulated = {policy: configured(plain) for policy, plain in made.items()}
    first = next(iter(simulated.values()))
    requests = workload_requests(first)
    found = parts(requests, config.repeats, config.requests)
    for each in simulated.values():
        build_simulation(each, requests[:1])
    return made, first, found, FIRST * prefill_rate_per_s(first, [r for part in found for r in requests[part.start : part.stop]])


def find_knees(
    config: CapacityConfig, made: Mapping[str, Mapping[str, Any]], cut: Sequence[Part], start_per_s: float, folder: Path
) -> CapacityResult:
    """Search every policy on every part, then run the rates of the curves."""
    goal = config.goal()
    chains = {
        f"{policy}/{number}": search_chain(plain, part, start_per_s, goal, config.tolerance)
        for policy, plain in made.items()
        for number, part in enumerate(cut)
    }
    found: dict[str, Search] = {}
    with open_pool(config.spec(), len(chains), folder) as pool:
        with bar("knees", len(chains)) as progress:
            tries, each = 0, expected_tries(config.tolerance)

            def stepped() -> None:
                nonlocal tries
                tries += 1
                progress.update(tries, max(tries, round(tries_of(found) + each * (len(chains) - len(found)))))

            run_chains(chains, pool, found.__setitem__, stepped)
        knees = {policy: Knee(policy, tuple(found[f"{policy}/{n}"] for n in range(len(cut))), goal) for policy in made}
        runs: dict[str, Figures] = {}
        rates = curve_rates(knees, config.curve_rates)
        grid = {
            f"{policy}/{number}/{index}": _one(made[policy], part, rate)
            for index, rate in enumerate(rates)
            for policy, knee in knees.items()
            if knee.found
            for number, part in enumerate(cut)
        }
        with bar("goodput by rate", max(1, len(grid))) as progress:

            def ran(name: str, figures: Figures) -> None:
                runs[name] = figures
                progress.update(len(runs), len(grid))

            run_chains(grid, pool, ran)
    curves = {
        policy: Curve(rates, tuple(tuple(runs[f"{policy}/{n}/{i}"]["goodput_per_s"] for n in range(len(cut))) for i in range(len(rates))))
        for policy, knee in knees.items()
        if knee.found and rates
    }
    searched = [
        {"policy": name.partition("/")[0], "part": int(name.partition("/")[2]), "step": "search", "meets": not goal.missed(run), **run}
        for name, search in found.items()
        for run in search.runs
    ]
    drawn = [
        {"policy": p, "part": int(n), "step": "curve", "meets": not goal.missed(figures), "rate_per_s": rates[int(i)], **figures}
        for name, figures in runs.items()
        for p, n, i in [name.split("/")]
    ]
    return CapacityResult(knees, curves, tuple(cut), (*searched, *drawn))


def tries_of(found: Mapping[str, Search]) -> int:
    return sum(len(search.runs) for search in found.values())


def curve_rates(knees: Mapping[str, Knee], count: int) -> tuple[float, ...]:
    """Rates from below the lowest knee to above the highest, evenly spaced; none where no policy has a knee."""
    held = [rate for knee in knees.values() if knee.found for rate in knee.rates_per_s]
    if not held or count == 0:
        return ()
    return tuple(np.linspace(AROUND[0] * min(held), AROUND[1] * max(held), count).tolist())


def _one(config: Mapping[str, Any], part: Part, rate_per_s: float) -> Chain[Figures]:
    figures: Figures = yield Task(run_part, {"config": config, "part": part, "rate_per_s": rate_per_s})
    return figures


def plan_line(config: CapacityConfig, choices: Mapping[str, str], simulated: SimulateConfig, cut: Sequence[Part]) -> str:
    """One line: what is searched, on what, and about how many simulations that takes."""
    many = len(config.policies) * len(cut)
    about = math.ceil(many * (expected_tries(config.tolerance) + config.curve_rates))
    cluster = simulated.cluster
    return (
        f"plan: the highest rate of {len(config.policies)} policies on {len(cut)} parts of {config.requests:,} requests "
        f"({choices['workload']}), {simulated.model.name} on {cluster.prefill}P{cluster.decode}D ({choices['hardware']}), "
        f"links of {simulated.network.gbps:g} Gbit/s; {goal_words(simulated.slo, config.goal())}; "
        f"about {about:,} simulations {config.spec().where(about)}"
    )


def goal_words(slo: SLO, goal: Goal) -> str:
    limit = f", distortion within {goal.max_distortion:g}" if math.isfinite(goal.max_distortion) else ""
    return f"goal: {goal.share:.0%} within {slo.ttft_s:g} s TTFT and {slo.tpot_s:g} s TPOT{limit}"
