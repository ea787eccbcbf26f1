"""The runs of policies in one world, and the best of several settings of a policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from abkt.records import SLO
from experiments.adaptation.rivals import Bitrate
from experiments.adaptation.scores import Score
from experiments.adaptation.worlds import World


@dataclass(slots=True)
class Runs:
    """All repeats of a policy in one world. A policy that has run before is not run again."""

    world: World
    slo: SLO
    repeats: int
    _known: dict[str, Score] = field(default_factory=dict)

    def score(self, name: str, bitrate: Bitrate) -> Score:
        key = json.dumps(bitrate, sort_keys=True, default=repr)
        if key not in self._known:
            made = Score(name)
            for repeat in range(self.repeats):
                made.add(self.world(repeat, bitrate, self.slo))
            self._known[key] = made
        return replace(self._known[key], name=name)

    def distortion(self, bitrate: Bitrate) -> list[float]:
        values: list[float] = self.score("", bitrate).all_distortion.tolist()
        return values

    def best(self, candidates: Sequence[Bitrate]) -> Bitrate:
        """The candidate with the most requests within the SLO; mean TTFT decides between equal shares."""
        if len(candidates) == 1:
            return candidates[0]

        def rank(bitrate: Bitrate) -> tuple[float, float]:
            made = self.score("", bitrate)
            return -made.attainment(self.slo.ttft_s), made.mean_ttft_s

        return min(candidates, key=rank)
