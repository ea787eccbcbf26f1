"""The search for the cheapest split of one choice of hardware and bitrate policy.

It assumes that a cluster with more instances of either role never does worse. Under that assumption it finds what trying every split finds:

1. The most instances of each role that the budget allows, both at once. If that misses the goal, every split within the budget does.
2. The fewest prefill instances with the most decode instances, and the other way round, by bisection above the bound of the cost model.
3. Splits from there, the cheapest first. A split that is no larger in either role than one that missed is left out. The search ends when
   the instances alone cost more than the best split found, its egress included.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from experiments.capacity.goal import Goal, kept_share
from experiments.capacity.parts import Part, run_part
from experiments.planning.space import Space, Split
from experiments.sweeps.chains import Chain, Task

Figures = dict[str, Any]
HOUR_S = 3600.0
PRUNED = ("the cost model says they are too small", "no larger than a split that missed", "not cheaper than the best")


@dataclass(slots=True)
class Tried:
    """What the search has seen of one choice.

    Parameters
    ----------
    runs : split -> its runs, one for each part of the workload until one missed the goal.
    met : the splits that meet the goal on every part.
    """

    runs: dict[Split, list[Figures]] = field(default_factory=dict)
    met: set[Split] = field(default_factory=set)

    def missed(self, split: Split) -> bool:
        """Whether the split has missed the goal, or is no larger than one that has."""
        return any(split.within(tried) for tried in self.runs.keys() - self.met)

    def simulations(self) -> int:
        return sum(len(runs) for runs in self.runs.values())


@dataclass(frozen=True, slots=True)
class Choice:
    """One row of a plan: hardware and policy with its cheapest split.

    Parameters
    ----------
    name : hardware and policy, such as h100, embedded.
    policy, prefill_gpu, decode_gpu : choices of the groups bitrate and hardware.
    split : the cheapest one that meets the goal; None if none does.
    usd_per_hour : price of its instances and of its egress.
    gpus : of the split.
    good_per_usd : requests within the SLO for each USD, on each part of the workload.
    distortion, share : mean distortion, and the least share of requests within the SLO on any part.
    reason : why there is no split; empty if there is one.
    within : number of splits within the budget. pruned : reason of PRUNED -> number of splits that were not simulated.
    tried : what was simulated.
    """

    policy: str
    prefill_gpu: str
    decode_gpu: str
    split: Split | None
    usd_per_hour: float
    gpus: int
    good_per_usd: tuple[float, ...]
    distortion: float
    share: float
    reason: str
    within: int
    pruned: dict[str, int]
    tried: Tried

    @property
    def hardware(self) -> str:
        return self.prefill_gpu if self.prefill_gpu == self.decode_gpu else f"{self.prefill_gpu} + {self.decode_gpu}"


@dataclass(frozen=True, slots=True)
class Load:
    """The parts of the workload and the rate of each, in requests/s."""

    parts: tuple[Part, ...]
    rates_per_s: tuple[float, ...]


def choice_chain(
    names: tuple[str, str, str], config: Mapping[str, Any], space: Space, least: Split, load: Load, goal: Goal
) -> Chain[Choice]:
    """Search one choice. names: policy, and hardware to prefill and to decode. least: the bound of the cost model."""
    tried = Tried()
    egress_usd_per_gb = float(config["network"]["egress_usd_per_gb"])

    def meets(split: Split) -> Generator[Task, Figures, bool]:
        if split in tried.runs:
            return split in tried.met
        if tried.missed(split):
            return False
        sized = {**config, "cluster": {**config["cluster"], "prefill": split.prefill, "decode": split.decode}}
        runs: list[Figures] = []
        for part, rate_per_s in zip(load.parts, load.rates_per_s, strict=True):
            figures = yield Task(run_part, {"config": sized, "part": part, "rate_per_s": rate_per_s})
            runs.append(figures)
            if goal.missed(figures):
                tried.runs[split] = runs
                return False
        tried.runs[split] = runs
        tried.met.add(split)
        return True

    def usd_per_hour(split: Split) -> float:
        return space.usd_per_hour(split) + egress_usd_per_gb * fmean(
            run["wire_bytes"] / 1e9 * HOUR_S * rate / (part.stop - part.start)
            for run, rate, part in zip(tried.runs[split], load.rates_per_s, load.parts, strict=True)
        )

    splits, largest = space.splits(), space.largest()
    best, floor = None, least
    if least.within(largest) and (yield from meets(largest)):
        prefill = yield from _fewest(least.prefill, largest.prefill, lambda n: meets(Split(n, largest.decode)))
        decode = yield from _fewest(least.decode, largest.decode, lambda n: meets(Split(largest.prefill, n)))
        floor = Split(prefill, decode)
        for split in splits:
            if best is not None and space.usd_per_hour(split) >= usd_per_hour(best):
                break
            if floor.within(split) and (yield from meets(split)) and (best is None or usd_per_hour(split) < usd_per_hour(best)):
                best = split
    pruned = _pruned(splits, least, tried)
    if best is None:
        why = _reason(goal, tried, largest, least)
        return Choice(*names, None, float("nan"), 0, (), float("nan"), float("nan"), why, len(splits), pruned, tried)
    runs, price = tried.runs[best], usd_per_hour(best)
    good = tuple(run["good_share"] * rate * HOUR_S / price if price else float("inf") for run, rate in zip(runs, load.rates_per_s))
    distortion, share = fmean(run["distortion.mean"] for run in runs), min(kept_share(run) for run in runs)
    return Choice(*names, best, price, space.gpus(best), good, distortion, share, "", len(splits), pruned, tried)


def _fewest(low: int, high: int, meets: Any) -> Generator[Task, Figures, int]:
    """The smallest number that meets the goal, where the largest does."""
    while low < high:
        middle = (low + high) // 2
        if (yield from meets(middle)):
            high = middle
        else:
            low = middle + 1
    return high


def _pruned(splits: Sequence[Split], least: Split, tried: Tried) -> dict[str, int]:
    """How many splits of the budget were not simulated, by reason."""
    found = dict.fromkeys(PRUNED, 0)
    for split in splits:
        if split not in tried.runs:
            small = not least.within(split)
            found[PRUNED[0] if small else PRUNED[1] if tried.missed(split) else PRUNED[2]] += 1
    return found


def _reason(goal: Goal, tried: Tried, largest: Split, least: Split) -> str:
    """Why no split within the budget meets the goal."""
    if not least.within(largest):
        return f"needs at least {least} by its costs, more than the budget"
    if largest in tried.runs and largest not in tried.met:
        return f"{goal.missed(tried.runs[largest][-1])}, even on {largest}"
    split, runs = max(tried.runs.items(), key=lambda item: (item[0] not in tried.met, kept_share(item[1][-1])))
    return f"no split within the budget; the closest that missed is {split}: {goal.missed(runs[-1])}"
