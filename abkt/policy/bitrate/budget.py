"""The distortion that the next transfer to a peer may have, so that the mean over all its transfers stays within a limit.

After n transfers with total distortion T, the next one may have up to (n + 1) mean_distortion - T, and never more than max_distortion.
So distortion that was not needed on a fast link can be spent on a slow one, and the limit of the mean holds after every transfer.

A transfer that is refined after decoding has begun counts with its distortion at the start until its request has ended. Then it counts
with the mean over the request's output tokens, which is not higher. So the mean of the token-weighted distortions never exceeds the limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from abkt.policy.view import Refined
from abkt.ranges import bound


@dataclass(slots=True)
class Budget:
    """target_distortion: distortion that is always allowed. mean_distortion: limit of the mean over all transfers. max_distortion: limit of
    each transfer."""

    target_distortion: float
    mean_distortion: float
    max_distortion: float
    _delivered: int = field(default=0, init=False)
    _spent: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        bound(self, "target_distortion", "mean_distortion", "max_distortion", least=0, infinite=True)
        if not self.target_distortion <= self.mean_distortion <= self.max_distortion:
            raise ValueError(
                f"target_distortion is {self.target_distortion}, mean_distortion {self.mean_distortion} and max_distortion "
                f"{self.max_distortion}; none may be above the next"
            )

    def spend(self, distortion: float) -> None:
        """A transfer was delivered with this distortion."""
        self._delivered += 1
        self._spent += distortion

    def refund(self, done: Refined) -> None:
        """A delivered transfer was refined: it counts with its token-weighted distortion from now on."""
        self._spent -= done.distortion_start - done.distortion_token_weighted

    def allowed(self) -> float:
        """The highest distortion that the next transfer may have."""
        left = (self._delivered + 1) * self.mean_distortion - self._spent
        return min(max(left, self.target_distortion), self.max_distortion)
