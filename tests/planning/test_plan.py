"""The planner against trying every split, its bounds against hand-solved cases, and its answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abkt.profile.roofline import GpuSpec, roofline
from abkt.records import SLO
from abkt.spec import ModelSpec
from experiments.capacity.goal import Goal, kept_share
from experiments.capacity.parts import Part
from experiments.cli import dispatch
from experiments.lib.compose import compose
from experiments.planning.page import answer
from experiments.planning.search import PRUNED, Choice, Load, Tried, choice_chain
from experiments.planning.space import Price, Space, Split, fewest
from sim.cost import Costs
from sim.specs import EngineSpec
from sim.workload.requests import Request
from tests.experiments.refused import refused

ONE = Part(0, 100, 1.0)
GOAL = Goal(0.9, 0.01)
CONFIG = {"network": {"egress_usd_per_gb": 0.0}, "cluster": {"max_batch": 8}}


def searched(
    space: Space, least: Split, share: Callable[[Split], float], usd_per_gb: float = 0.0, gb: Callable[[Split], float] = lambda split: 0.0
) -> Choice:
    """Search a made-up simulator: split -> share of the requests within the SLO, and GB of egress of each run."""
    config = {**CONFIG, "network": {"egress_usd_per_gb": usd_per_gb}}
    chain = choice_chain(("raw", "a", "b"), config, space, least, Load((ONE,), (1.0,)), GOAL)

    def figures(named: Mapping[str, Any]) -> dict[str, float]:
        split = Split(named["config"]["cluster"]["prefill"], named["config"]["cluster"]["decode"])
        same = {"distortion.mean": 0.0, "distortion.p99": 0.0, "wire_bytes": gb(split) * 1e9}
        return {**same, "good_share": share(split), "late_share": share(split)}

    try:
        task = next(chain)
        while True:
            task = chain.send(figures(task.named))
    except StopIteration as end:
        return end.value


@st.composite
def frontiers(draw: st.DrawFn) -> Callable[[Split], float]:
    """A made-up cluster in which more instances never do worse: a split meets the goal if it is as large as one of a few splits."""
    corners = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3))
    return lambda split: 1.0 if any(p <= split.prefill and d <= split.decode for p, d in corners) else 0.5


prices = st.builds(Price, st.integers(1, 2), st.floats(0.5, 4.0))


@given(meets=frontiers(), prefill=prices, decode=prices, gpus=st.integers(4, 14))
@settings(deadline=None)
def test_the_search_finds_what_trying_every_split_finds(meets: Callable[[Split], float], prefill: Price, decode: Price, gpus: int) -> None:
    space = Space(prefill, decode, gpus, math.inf)
    good = [space.usd_per_hour(split) for split in space.splits() if meets(split) == 1.0]
    found = searched(space, Split(1, 1), meets)
    if not good:
        assert found.split is None
        assert found.reason
    else:
        assert found.split is not None
        assert meets(found.split) == 1.0
        assert found.usd_per_hour == space.usd_per_hour(found.split) == min(good)
    inside = [split for split in found.tried.runs if space.affords(split)]
    assert len(inside) + sum(found.pruned.values()) == found.within == len(space.splits())


@given(meets=frontiers(), usd_per_gb=st.floats(0, 0.1))
@settings(deadline=None)
def test_egress_counts_in_the_price(meets: Callable[[Split], float], usd_per_gb: float) -> None:
    """A made-up policy sends more where it has more decode instances: 100 requests in 100 s, so a GB of a run is 36 GB an hour."""
    space = Space(Price(1, 2.0), Price(1, 1.0), 10, math.inf)

    def price(split: Split) -> float:
        return space.usd_per_hour(split) + usd_per_gb * 36 * split.decode

    found = searched(space, Split(1, 1), meets, usd_per_gb, lambda split: float(split.decode))
    good = [price(split) for split in space.splits() if meets(split) == 1.0]
    assert (found.usd_per_hour == pytest.approx(min(good))) if good else found.split is None


def test_what_is_left_out_by_hand() -> None:
    """2P1D is the least by the costs, and 3P2D the true one, within 6 GPUs of 1 USD.

    The largest of each role is 5P5D, beyond the budget. Bisection with 5 of the other role finds 3 to prefill (3P5D meets; 2P5D misses)
    and 2 to decode (5P3D and 5P2D meet; 5P1D misses). 3P2D is then the cheapest left, and it meets.
    """
    found = searched(Space(Price(1, 1.0), Price(1, 1.0), 6, math.inf), Split(2, 1), lambda s: 1.0 if Split(3, 2).within(s) else 0.4)
    assert found.split == Split(3, 2)
    assert set(found.tried.runs) == {Split(5, 5), Split(3, 5), Split(2, 5), Split(5, 3), Split(5, 2), Split(5, 1), Split(3, 2)}
    assert found.within == 15
    assert found.pruned == {PRUNED[0]: 5, PRUNED[1]: 6, PRUNED[2]: 2}  # 1P1D to 1P5D; 2P1D to 2P4D, 3P1D, 4P1D; 3P3D, 4P2D


def test_what_even_the_largest_cluster_misses_takes_one_simulation() -> None:
    found = searched(Space(Price(1, 1.0), Price(1, 1.0), 16, math.inf), Split(1, 1), lambda split: 0.3)
    assert (found.split, found.tried.simulations()) == (None, 1)
    assert found.reason == "30 % of the requests are within the SLO, even on 15P15D"
    none = searched(Space(Price(1, 1.0), Price(1, 1.0), 4, math.inf), Split(9, 1), lambda split: 1.0)
    assert (none.tried.simulations(), none.reason) == (0, "needs at least 9P1D by its costs, more than the budget")


def test_the_splits_of_a_budget() -> None:
    space = Space(Price(1, 3.0), Price(2, 1.0), 6, 8.0)
    assert [str(split) for split in space.splits()] == ["1P1D", "1P2D", "2P1D", "2P2D"]  # 4, 5, 7, 8 USD
    assert space.largest() == Split(2, 2)
    with pytest.raises(ValueError, match="1P1D needs 3 GPUs and 4 USD/hour, more than the budget"):
        Space(Price(1, 3.0), Price(2, 1.0), 2, math.inf)
    with pytest.raises(ValueError, match="the plan has no limit"):
        Space(Price(1, 0.0), Price(1, 1.0), math.inf, 10.0)


def test_the_bound_of_the_cost_model_by_hand() -> None:
    """10 prompts of 1 s in 4 s and 1 s to spare, 90 % of them: 9 s of work in 5 s. 50 tokens each of 10 ms in a batch of up to 2."""
    model = ModelSpec("m", 1, 1, 64, heads=1, parameters=1e6, active_parameters=1e6)
    profile = roofline(GpuSpec("g", 1e12, 1e12, 1e12), model, ())
    fits = {**profile.fits, "prefill": replace(profile.fits["prefill"], features=("1", "tokens"), coefficients=(0.5, 0.005))}
    fits["decode"] = replace(profile.fits["decode"], features=("1", "batch", "context"), coefficients=(0.02, 0.0, 0.0))
    costs = Costs(replace(profile, fits=fits))
    requests = [Request(i, 4 * i / 9, 100, 52) for i in range(10)]
    slo = SLO(1.0, 0.02)
    assert fewest(requests, costs, costs, slo, 0.9, 2, EngineSpec()) == Split(2, 1)  # 9 / 5, and 9 * 50 * 0.01 / (5 + 52 * 0.02)
    assert fewest(requests, costs, costs, slo, 0.9, 1, EngineSpec()) == Split(2, 2)  # without a batch a token takes 20 ms
    assert fewest(requests, costs, costs, slo, 0.9, 2, EngineSpec(prefill_tokens=4096)).prefill == 1  # prompts may share a pass


SMALL = (
    *("workload=poisson", "workload.isl=6000", "workload.osl=150", "network=5g", "slo.ttft_s=2", "slo.tpot_s=0.03"),
    *("rate_per_s=6", "requests=80", "repeats=1", "max_gpus=6", "pool=serial", "cluster.max_batch=16"),
)


@pytest.mark.slow
def test_the_verb_against_every_split(tmp_path: Path) -> None:
    """Every split within 6 GPUs is simulated by itself; the plan names the cheapest that meets the goal, for each policy."""
    out = tmp_path / "plan"
    policies = ("int4", "embedded")
    assert dispatch(["plan", *SMALL, f"policies=[{','.join(policies)}]", f"out={out}"]) == 0
    found = {row["policy"]: row for row in json.loads((out / "plan.json").read_text())["choices"]}
    from experiments.capacity.parts import parts, plain_workload, run_part
    from experiments.sweeps.point import configured, workload_requests

    for policy in policies:
        keys = [key for key in SMALL if not key.startswith(("rate_per_s", "requests", "repeats", "max_gpus", "pool"))]
        config = plain_workload(
            {k: v for k, v in compose("simulate", [*keys, f"bitrate={policy}"]).config.items() if k not in ("out", "progress")}, 80
        )
        (part,) = parts(workload_requests(configured(config)), 1, 80)
        good = []
        for split in Space(Price(1, 3.0), Price(1, 3.0), 6, math.inf).splits():
            sized = {**config, "cluster": {**config["cluster"], "prefill": split.prefill, "decode": split.decode}}
            if not Goal(0.9, 0.01).missed(run_part(sized, part, 6.0)):
                good.append(split)
        assert good, "the case must have an answer"
        cheapest = min(3.0 * (split.prefill + split.decode) for split in good)
        assert found[policy]["usd_per_hour"] == cheapest
        assert found[policy]["split"] in {str(s) for s in good if 3.0 * (s.prefill + s.decode) == cheapest}
    runs = pd.read_parquet(out / "runs.parquet")
    assert len(runs) == json.loads((out / "plan.json").read_text())["simulations"]
    assert (out / "report.html").stat().st_size > 5000


def choice(policy: str, split: Split | None, usd: float, good: tuple[float, ...] = (10.0, 10.0), distortion: float = 0.0) -> Choice:
    return Choice(policy, "h100", "h100", split, usd, 4, good, distortion, 0.95, "" if split else "too slow", 20, {}, Tried())


def test_the_cheapest_is_named_with_its_margin() -> None:
    found = answer(
        [choice("embedded", Split(3, 2), 15.0, (20.0, 40.0)), choice("int4", Split(4, 2), 18.0, (10.0, 20.0)), choice("raw", None, 0)]
    )
    assert (found.kind, found.policy) == ("use", "embedded")
    assert "Use embedded on 3P2D of h100: 15 USD/hour" in found.sentence
    assert "int4 on h100 on 4P2D, costs 3 USD/hour more (20 %)" in found.sentence
    assert "a USD buys 100 % [100, 100] more" in found.sentence


def test_the_same_price_is_a_tie_and_the_least_distorted_is_taken() -> None:
    found = answer([choice("int4", Split(2, 2), 12.0, distortion=0.006), choice("fleet", Split(2, 2), 12.0, distortion=0.001)])
    assert (found.kind, found.policy) == ("tie", "fleet")
    assert found.sentence.startswith("int4 and fleet cost the same, 12 USD/hour (2P2D): take fleet")


def test_nothing_within_the_budget_is_no_answer() -> None:
    found = answer([choice("raw", None, 0.0)])
    assert (found.kind, found.policy) == ("no_answer", None)
    assert "raw on h100: too slow" in found.sentence


def test_the_share_of_a_plan_is_the_least() -> None:
    assert kept_share({"good_share": 0.95, "late_share": 0.91}) == 0.91


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["gpus=[h100,h101]"], "hardware=h101 is not known"),
        (["gpus=[]"], "gpus are []"),
        (["policies=[raw,raw]"], "policies are ['raw', 'raw']"),
        (["hardware=l4"], "hardware=l4: the plan searches these"),
        (["cluster=2p2d"], "cluster=2p2d: the plan searches these"),
        (["bitrate=raw"], "bitrate=raw: this verb compares several policies"),
        (["gpus=[h100,l40s]", "hardware.usd_per_hour=2"], "hardware.usd_per_hour=2: with several gpus"),
        (["usd_per_hour={l4: 1}"], "a price of l4, which is not among gpus"),
        (["usd_per_hour={h100: -3}"], "a price must be finite and not negative"),
        (["max_gpus=0"], "max_gpus is 0"),
        (["max_gpus=1"], "1P1D needs 2 GPUs"),
        (["max_gpus=null"], "the plan has no limit"),
        (["max_usd_per_hour=-1"], "max_usd_per_hour is -1"),
        (["rate_per_s=-1"], "rate_per_s is -1"),
        (["goal_share=2"], "goal_share is 2"),
        (["requests=3"], "requests is 3"),
        (["repeats=0"], "repeats is 0"),
        (["roles=arrow"], "roles=arrow: a plan is a fixed split"),
        (["model=llama-3.1-70b", "gpus=[l4]"], "does not fit"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert part in refused(["plan", "workload=poisson", *arguments, "out=results"], tmp_path, capsys)
