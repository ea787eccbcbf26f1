"""What distortion the next transfer of a peer may have, so that the mean over all of them stays within a limit.

A transfer that is refined behind its start counts with what it started at until its request has ended, then with the mean over its output
tokens, which is no more: so the mean of the token-weighted distortions is within the limit at any time.

After n transfers of total distortion T, the next may have up to (n + 1) mean_distortion - T, and never more than max_distortion. So what
good times leave unused pays for bad ones, and the mean holds after every transfer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from abkt.policy.view import Refined


@dataclass(slots=True)
class Budget:
    """target_distortion: as good as asked, and always allowed. mean_distortion: of all transfers. max_distortion: of any one."""

    target_distortion: float
    mean_distortion: float
    max_distortion: float
    _delivered: int = field(default=0, init=False)
    _spent: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.target_distortion <= self.mean_distortion <= self.max_distortion:
            raise ValueError("bitrate: 0 <= target_distortion <= mean_distortion <= max_distortion must hold")

    def spend(self, distortion: float) -> None:
        self._delivered += 1
        self._spent += distortion

    def correct(self, done: Refined) -> None:
        self._spent -= done.distortion_start - done.distortion_token_weighted

    def allowed(self) -> float:
        left = (self._delivered + 1) * self.mean_distortion - self._spent
        return min(max(left, self.target_distortion), self.max_distortion)
