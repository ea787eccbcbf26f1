"""A request to the real cluster, with its tokens."""

from __future__ import annotations

from dataclasses import dataclass

from abkt.serve.engine.generation import GREEDY, Generation, Sampling


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request.

    Parameters
    ----------
    request_id : unique among the requests of a run.
    arrival_s : arrival time, in seconds of the run.
    tokens : token ids of the prompt.
    osl : number of output tokens to generate; with stop tokens, the highest number.
    expected : the right answer, if it is known.
    sampling : how the output tokens are chosen.
    stop : the tokens that end the output.
    stream : whether each token is reported as soon as it is generated.
    """

    request_id: int
    arrival_s: float
    tokens: tuple[int, ...]
    osl: int
    expected: tuple[int, ...] = ()
    sampling: Sampling = GREEDY
    stop: tuple[int, ...] = ()
    stream: bool = False

    @property
    def isl(self) -> int:
        return len(self.tokens)

    @property
    def generation(self) -> Generation:
        return Generation(self.osl, self.stop, self.stream, self.sampling)
