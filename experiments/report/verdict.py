"""The answer of a run in one sentence: use one policy, take either of several, or no answer. Terminal, reports and summaries share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["use", "tie", "no_answer"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reader should do.

    Parameters
    ----------
    kind : `use` one policy; `tie`: several cannot be told apart, and `policy` is the one with less distortion; `no_answer`.
    policy : the policy to take; None without an answer.
    sentence : the whole answer as one sentence, with its margin.
    why : the reason in a few words, such as `overloaded`; what to do about it where there is no answer.

    Raises
    ------
    ValueError : if an answer names no policy, or no answer names one.
    """

    kind: Kind
    policy: str | None
    sentence: str
    why: str

    def __post_init__(self) -> None:
        if (self.policy is None) != (self.kind == "no_answer"):
            raise ValueError(f"a verdict of kind {self.kind} with policy {self.policy}: an answer names a policy, no answer names none")
