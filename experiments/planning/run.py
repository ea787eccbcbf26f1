"""A run of `abkt plan`: every policy on every choice of hardware, each searched for its cheapest split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from abkt.profile.roofline import GpuSpec
from abkt.ranges import bound
from experiments.capacity.goal import Goal
from experiments.capacity.parts import FEWEST, parts
from experiments.capacity.run import bitrate_points, goal_words
from experiments.lib.config import MeasuredHardware, instance
from experiments.lib.progress import bar
from experiments.lib.simulation import SimulateConfig, build_simulation
from experiments.lib.verb import VerbCall
from experiments.planning.search import Choice, Load, choice_chain
from experiments.planning.space import Price, Space, Split, fewest
from experiments.sweeps.chains import run_chains
from experiments.sweeps.point import configured, workload_requests
from experiments.sweeps.pools import PoolSpec, open_pool
from sim.cost import Costs

if TYPE_CHECKING:
    from pydantic import ConfigDict

EXPECTED = 12  # about how many simulations one choice takes


@dataclass(frozen=True, slots=True)
class PlanConfig:
    """What to plan for.

    Parameters
    ----------
    policies, gpus : choices of the groups bitrate and hardware. Prefill and decode may have different GPUs.
    usd_per_hour : choice of hardware -> price of an instance, in place of its own.
    max_gpus, max_usd_per_hour : the budget; None: no limit of that kind.
    rate_per_s : requests/s to plan for; None: the workload's own rate.
    goal_share, max_distortion : the goal, see experiments.capacity.goal. A split has to meet it on every part of the workload.
    requests, repeats : requests of each run, and parts of the workload.
    pool, workers, pool_options : see PoolSpec.
    plot, csv : also write report.html, and the runs as CSV.

    The simulation's own keys are allowed here and are read for each choice.
    """

    policies: list[str]
    gpus: list[str]
    usd_per_hour: dict[str, float] | None
    max_gpus: int | None
    max_usd_per_hour: float | None
    rate_per_s: float | None
    goal_share: float
    max_distortion: float
    requests: int
    repeats: int
    pool: str
    pool_options: dict[str, Any] | None
    workers: int | None
    plot: bool
    csv: bool
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "ignore"}

    def __post_init__(self) -> None:
        for name, given in (("policies", self.policies), ("gpus", self.gpus)):
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} are {given}; give at least one, each once")
        if unknown := sorted(set(self.usd_per_hour or {}) - set(self.gpus)):
            raise ValueError(f"usd_per_hour has a price of {unknown[0]}, which is not among gpus={self.gpus}")
        if any(not 0 <= price < math.inf for price in (self.usd_per_hour or {}).values()):
            raise ValueError(f"usd_per_hour is {self.usd_per_hour}; a price must be finite and not negative")
        bound(self, "max_gpus", "max_usd_per_hour", above=0)
        bound(self, "rate_per_s", above=0)
        bound(self, "requests", least=FEWEST)
        bound(self, "repeats", least=1, most=100)
        self.goal()
        self.spec()

    def goal(self) -> Goal:
        return Goal(self.goal_share, self.max_distortion)

    def spec(self) -> PoolSpec:
        return PoolSpec(self.pool, self.workers, self.pool_options or {})


@dataclass(frozen=True, slots=True)
class Candidate:
    """What one choice is searched with: names are policy, prefill GPU and decode GPU."""

    names: tuple[str, str, str]
    config: dict[str, Any]
    space: Space
    least: Split


@dataclass(frozen=True, slots=True)
class Prepared:
    """candidates: the choices to search. load: what they have to carry. one: the configuration of one of them. unfit: GPU -> why not."""

    candidates: tuple[Candidate, ...]
    load: Load
    one: SimulateConfig
    unfit: dict[str, str]


def prepare(config: PlanConfig, run: VerbCall) -> Prepared:
    """All choices, with all input checked. Raises ValueError, one line."""
    for argument in run.arguments:
        if argument.startswith(("hardware=", "cluster=", "cluster.prefill", "cluster.decode", "+hardware@")):
            raise ValueError(f"{argument}: the plan searches these; give gpus=[h100,l40s] and a budget such as max_gpus=16")
        if argument.startswith("hardware.") and len(config.gpus) > 1:
            raise ValueError(
                f"{argument}: with several gpus it is not clear which is meant; give one of gpus, or their prices as usd_per_hour"
            )
    plain: dict[tuple[str, str, str], dict[str, Any]] = {}
    for prefill_gpu, decode_gpu in product(config.gpus, repeat=2):
        other = () if prefill_gpu == decode_gpu else (f"+hardware@decode_hardware={decode_gpu}",)
        arguments = (*run.arguments, f"hardware={prefill_gpu}", *other)
        made = bitrate_points(run.verb, config.policies, replace(run, arguments=arguments), config.requests * config.repeats)
        plain |= {(policy, prefill_gpu, decode_gpu): each for policy, each in made.items()}
    simulated = {names: configured(each) for names, each in plain.items()}
    one = next(iter(simulated.values()))
    if run.choices.get("roles", "static") != "static":
        raise ValueError(f"roles={run.choices['roles']}: a plan is a fixed split; leave roles=static")
    requests = workload_requests(one)
    cut = parts(requests, config.repeats, config.requests)
    load = Load(cut, tuple(config.rate_per_s or part.rate_per_s for part in cut))
    unfit = _unfit(simulated)
    candidates = []
    for names, each in simulated.items():
        if set(names[1:]) & unfit.keys():
            continue
        build_simulation(each, requests[:1])
        prefill, decode = _costs(each.hardware, each), _costs(each.decode_hardware or each.hardware, each)
        bounds = [
            fewest(part.of(requests, rate), prefill, decode, each.slo, config.goal_share, each.cluster.max_batch, each.engine)
            for part, rate in zip(load.parts, load.rates_per_s, strict=True)
        ]
        least = Split(max(b.prefill for b in bounds), max(b.decode for b in bounds))
        candidates.append(Candidate(names, plain[names], _space(config, names, each), least))
    if not candidates:
        raise ValueError(next(iter(unfit.values())))
    return Prepared(tuple(candidates), load, one, unfit)


def _unfit(simulated: Mapping[tuple[str, str, str], SimulateConfig]) -> dict[str, str]:
    """GPU -> why the model does not run on it."""
    found: dict[str, str] = {}
    for (_, prefill_gpu, decode_gpu), config in simulated.items():
        if prefill_gpu == decode_gpu and prefill_gpu not in found:
            try:
                instance(config.hardware, config.model, config.curves)
            except ValueError as error:
                found[prefill_gpu] = str(error)
    return found


def _costs(hardware: GpuSpec | MeasuredHardware, config: SimulateConfig) -> Costs:
    return Costs(instance(hardware, config.model, config.curves).profile)


def _space(config: PlanConfig, names: tuple[str, str, str], simulated: SimulateConfig) -> Space:
    def price(name: str, hardware: GpuSpec | MeasuredHardware) -> Price:
        gpus = 1 if isinstance(hardware, MeasuredHardware) else hardware.gpus
        return Price(gpus, (config.usd_per_hour or {}).get(name, hardware.usd_per_hour))

    prefill, decode = price(names[1], simulated.hardware), price(names[2], simulated.decode_hardware or simulated.hardware)
    return Space(prefill, decode, config.max_gpus or math.inf, config.max_usd_per_hour or math.inf)


def search(config: PlanConfig, prepared: Prepared, folder: Path) -> list[Choice]:
    """The cheapest split of every choice: those that have one first, by price, then by requests within the SLO for each USD."""
    goal = config.goal()
    chains = {"/".join(c.names): choice_chain(c.names, c.config, c.space, c.least, prepared.load, goal) for c in prepared.candidates}
    found: dict[str, Choice] = {}
    with open_pool(config.spec(), len(chains), folder) as pool, bar("splits", len(chains)) as progress:
        steps = 0

        def stepped() -> None:
            nonlocal steps
            steps += 1
            done = sum(choice.tried.simulations() for choice in found.values())
            progress.update(steps, max(steps, done + (len(chains) - len(found)) * EXPECTED * config.repeats // 2))

        run_chains(chains, pool, found.__setitem__, stepped)
        progress.update(steps, steps)
    return sorted(found.values(), key=_order)


def _order(choice: Choice) -> tuple[bool, float, float]:
    good = sum(choice.good_per_usd)
    return (True, 0.0, 0.0) if choice.split is None else (False, round(choice.usd_per_hour, 6), -good)


def plan_line(config: PlanConfig, choices: Mapping[str, str], prepared: Prepared) -> str:
    """One line: what is planned for, within which budget."""
    limits = [f"{config.max_gpus} GPUs"] if config.max_gpus else []
    limits += [f"{config.max_usd_per_hour:g} USD/hour"] if config.max_usd_per_hour else []
    rates = prepared.load.rates_per_s
    rate = f"{rates[0]:.3g}" if math.isclose(min(rates), max(rates)) else f"{min(rates):.3g} to {max(rates):.3g}"
    return (
        f"the cheapest split for {prepared.one.model.name} at {rate} requests/s of {choices['workload']} "
        f"({config.repeats} parts of {config.requests:,}), on {_listed(config.gpus)} within {' and '.join(limits)}, "
        f"links of {prepared.one.network.gbps:g} Gbit/s, {len(config.policies)} policies; "
        f"{goal_words(prepared.one.slo, config.goal())}; {config.spec().where(len(prepared.candidates))}"
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"
