"""A request as the real cluster gets it: with its tokens."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.serve.engine.sampling import GREEDY, Sampling


@dataclass(frozen=True, slots=True)
class Prompt:
    """tokens: the prompt's ids. osl: tokens to produce, at most where there is a stop. expected: what a perfect reader would answer, if
    known. stop: the token that ends it; -1: none. stream: each token is told as it is made."""

    request_id: int
    arrival_s: float
    tokens: tuple[int, ...]
    osl: int
    expected: tuple[int, ...] = ()
    sampling: Sampling = GREEDY
    stop: int = -1
    stream: bool = False

    @property
    def isl(self) -> int:
        return len(self.tokens)

    def more(self) -> dict[str, int | float | bool]:
        """What travels with its KV."""
        return {"osl": self.osl, "stop": self.stop, "stream": self.stream, **self.sampling.fields()}
