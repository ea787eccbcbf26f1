"""What to generate for a request, and how its tokens are chosen: the fields, and their ranges. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

SEED_CAP = 1 << 31
LOGPROBS_CAP = 20

TokenLogprobs = tuple[tuple[int, float], ...]  # (token, log-probability): of the chosen token, then of the likeliest ones


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are chosen.

    Parameters
    ----------
    temperature : 0: take the most likely token and ignore the other fields; otherwise 0.01 to 100.
    top_k : draw among this many most likely tokens; 0: among all.
    top_p : of the tokens that top_k leaves, draw among the smallest set of most likely ones whose probabilities add up to top_p; above 0
        and at most 1.
    seed : 0 to 2**31 - 1.
    logprobs : how many of the likeliest tokens are reported with each chosen one, each with its log-probability; 0 to 20, or -1: no
        log-probability is reported.

    Raises
    ------
    ValueError : one line, if a field is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    logprobs: int = -1

    def __post_init__(self) -> None:
        if self.temperature != 0 and not 0.01 <= self.temperature <= 100:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy), or 0.01 to 100")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.seed < SEED_CAP:
            raise ValueError(f"seed is {self.seed}; it must be 0 to {SEED_CAP - 1}")
        if not -1 <= self.logprobs <= LOGPROBS_CAP:
            raise ValueError(f"logprobs is {self.logprobs}; it must be -1 (none) to {LOGPROBS_CAP}")

    def fields(self) -> dict[str, int | float]:
        """The fields by name; `of` reads them back."""
        return asdict(self)

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Sampling:
        """A Sampling from these fields; a missing one is as in GREEDY. Raises ValueError, one line, if one is not a number of its kind."""
        found: dict[str, Any] = {}
        for name, kind in ((f.name, (int, float) if f.name in ("temperature", "top_p") else (int,)) for f in fields(cls)):
            value = members.get(name, getattr(GREEDY, name))
            if type(value) not in kind or (type(value) is float and not math.isfinite(value)):
                raise ValueError(f"{name} is {value!r}; it must be a number")
            found[name] = value
        return cls(**found)


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate for a request. osl: number of output tokens; with stop tokens, the highest number. stop: the tokens that end the
    output. stream: whether each token is reported as soon as it is generated."""

    osl: int
    stop: tuple[int, ...] = ()
    stream: bool = False
    sampling: Sampling = GREEDY

    def fields(self) -> dict[str, Any]:
        """The fields by name, for the offer of a transfer; `of` reads them back."""
        return {"osl": self.osl, "stop": " ".join(map(str, self.stop)), "stream": self.stream, **self.sampling.fields()}

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Generation:
        """A Generation from these fields. Raises ValueError, one line, if osl is missing or a field has a wrong type."""
        osl, stop, stream = members.get("osl"), members.get("stop", ""), members.get("stream", False)
        if type(osl) is not int or type(stop) is not str or not set(stop) <= set("0123456789 ") or type(stream) is not bool:
            raise ValueError(f"osl is {osl!r}, stop {stop!r}, stream {stream!r}; they must be an integer, a text of integers and a boolean")
        return cls(osl, tuple(map(int, stop.split())), stream, Sampling.of(members))

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether these output tokens are complete."""
        return len(tokens) >= self.osl or tokens[-1] in self.stop
