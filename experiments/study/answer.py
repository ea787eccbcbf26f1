"""The answer of a study from the records of its runs: verdict, trust and utilisation, for compare.json and summary.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from abkt.records import SLO
from experiments.lib.results import read_json, read_records
from experiments.study.comparison import compare_records, mean_of_repeats
from experiments.study.decision import Decision, Measured, decide
from experiments.study.folder import over_repeats, real, simulated
from experiments.study.ranking import rank
from experiments.study.trust import Trust, trust
from experiments.study.utilisation import utilisation

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """decision, trust: what was decided, and whether the simulator would have decided so. busy: `planned` (as simulated before the runs)
    and `measured` utilisation of each worker, the mean over the runs. compare: the contents of compare.json."""

    decision: Decision
    trust: Trust
    busy: Mapping[str, Mapping[str, float]]
    compare: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """verdict, utilisation and trust, as summary.json has them. utilisation.prefill and .decode are the measured ones."""
        measured = self.busy["measured"]
        return {
            "verdict": asdict(self.decision.verdict),
            "utilisation": {"prefill": measured["prefill"], "decode": measured["decode"], **self.busy},
            "trust": {**asdict(self.trust), "sentence": self.trust.sentence()},
        }


def answer(folder: Path, policies: Sequence[str], repeats: int, slo: SLO, max_distortion: float) -> Answer:
    """The answer, from twin/ in the folder of the study."""
    rows = {policy: [read_records(real(folder, policy, r) / "requests.parquet") for r in range(1, repeats + 1)] for policy in policies}
    said = {policy: read_records(simulated(folder, policy) / "requests.parquet") for policy in policies}
    each = {policy: [utilisation(of) for of in rows[policy]] for policy in policies}
    lightest = {
        "prefill": min(float(np.mean([u["prefill"] + u["encode"] for u in us])) for us in each.values()),
        "decode": min(float(np.mean([u["decode"] for u in us])) for us in each.values()),
    }
    found = [measured(policy, rows[policy], slo) for policy in policies]
    busy = {"planned": _mean(map(utilisation, said.values())), "measured": _mean(u for us in each.values() for u in us)}
    decision = decide(found, max_distortion, lightest, busy["measured"]["prefill"] / busy["planned"]["prefill"])
    predicted = {policy: read_json(simulated(folder, policy) / "summary.json") for policy in policies}
    summaries = {policy: [read_json(real(folder, policy, r) / "summary.json") for r in range(1, repeats + 1)] for policy in policies}
    trusted = trust(predicted, summaries, found, decision, max_distortion)
    compare = {
        "schema_version": SCHEMA_VERSION,
        "max_distortion": max_distortion,
        "repeats": repeats,
        "policies": {p: compare_records(mean_of_repeats(rows[p]), said[p], f"{p} measured", f"{p} predicted") for p in policies},
        "hardware": asdict(rank({policy: over_repeats(folder, policy, repeats) for policy in policies}, max_distortion)),
        "simulated": asdict(rank(predicted, max_distortion)),
        "verdict": asdict(decision.verdict),
        "best": decision.best,
        "refused": decision.refused,
        "pairs": [{**asdict(pair), "winner": pair.winner} for pair in decision.pairs],
        "trust": asdict(trusted),
    }
    return Answer(decision, trusted, busy, compare)


def measured(policy: str, repeats: Sequence[pd.DataFrame], slo: SLO) -> Measured:
    """A policy's real runs, each in order of arrival."""
    ordered = [rows.sort_values(["arrival_s", "request_id"], kind="stable") for rows in repeats]
    done = np.array([rows.outcome == "completed" for rows in ordered])
    ttft_s, tpot_s = (np.array([rows[name].to_numpy(float) for rows in ordered]) for name in ("ttft_s", "tpot_s"))
    good = (done & (ttft_s <= slo.ttft_s) & ~(tpot_s > slo.tpot_s)).astype(float)
    distortion = np.concatenate([rows.distortion_token_weighted.to_numpy(float)[rows.outcome == "completed"] for rows in ordered])
    mean, p99 = (float(distortion.mean()), float(np.quantile(distortion, 0.99))) if len(distortion) else (np.nan, np.nan)
    return Measured(policy, good, np.where(done, ttft_s, np.nan), mean, p99)


def _mean(values: Any) -> dict[str, float]:
    found = list(values)
    return {worker: float(np.mean([value[worker] for value in found])) for worker in found[0]}
