"""One choice of an answer while it is generated: from tokens to pieces of text."""

from __future__ import annotations

from dataclasses import dataclass, field

from abkt.serve.api.detokenizer import Detokenizer
from abkt.serve.api.stop_strings import StopStrings
from abkt.serve.api.text import Text
from abkt.serve.engine.generation import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a choice. index: the choice. logprobs: of each token; empty if none were asked for. start: characters of the choice's text
    before this piece. finish_reason: stop or length with the last piece, else empty."""

    index: int
    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    start: int = 0
    finish_reason: str = ""


@dataclass(slots=True)
class GrowingChoice:
    """The text of one choice. Used by one thread.

    index: its place in the answer. stop: tokens that end it. stops: strings that end it and are not part of it. tokens: how many have come.
    done: a stop string has come; later tokens are ignored.
    """

    index: int
    text: Text
    stop: tuple[int, ...]
    stops: tuple[str, ...]
    tokens: int = 0
    done: bool = False
    _last: int = -1
    _written: int = 0
    _detokenizer: Detokenizer = field(init=False)
    _finder: StopStrings = field(init=False)

    def __post_init__(self) -> None:
        self._detokenizer, self._finder = Detokenizer(self.text), StopStrings(self.stops)

    def add(self, tokens: list[int], logprobs: list[TokenLogprobs]) -> Piece | None:
        """The piece of these tokens; None if they come after a stop string."""
        if self.done:
            return None
        text, used = "", 0
        for token in tokens:
            used += 1
            self._last = token
            text += self._finder.add(self._detokenizer.add(token))
            if self._finder.found:
                self.done = True
                break
        self.tokens += used
        return self._piece(text, tuple(tokens[:used]), tuple(filter(None, logprobs[:used])))

    def end(self) -> Piece:
        """The last piece, when no more tokens come."""
        text = "" if self.done else self._finder.add(self._detokenizer.end()) + self._finder.end()
        stopped = self._finder.found or self._last in self.stop
        return self._piece(text, finish_reason="stop" if stopped else "length")

    def _piece(self, text: str, tokens: tuple[int, ...] = (), logprobs: tuple[TokenLogprobs, ...] = (), finish_reason: str = "") -> Piece:
        start, self._written = self._written, self._written + len(text)
        return Piece(self.index, text, tokens, logprobs, start, finish_reason)
