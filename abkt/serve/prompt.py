"""A request as the real cluster gets it: with its tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prompt:
    """tokens: the prompt's ids. osl: tokens to produce. expected: what a perfect reader would answer, if known."""

    request_id: int
    arrival_s: float
    tokens: tuple[int, ...]
    osl: int
    expected: tuple[int, ...] = ()

    @property
    def isl(self) -> int:
        return len(self.tokens)
