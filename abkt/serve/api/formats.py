"""The JSON of an answer: as a completion or as a chat, whole or as the events of a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from abkt.serve.api.choice import Piece
from abkt.serve.api.text import Text
from abkt.serve.engine.generation import TokenLogprobs

LEAST_LOGPROB = -9999.0  # JSON has no infinity


class Format(Protocol):
    """How an endpoint writes an answer. prefix: of its id. object, chunk: OpenAI's name of it, and of an event of its stream."""

    prefix: str
    object: str
    chunk: str

    def first(self, index: int) -> dict[str, Any] | None:
        """The choice in an event that begins it; None if there is no such event."""
        ...

    def event(self, piece: Piece, text: Text) -> dict[str, Any]:
        """The choice in an event of a stream."""
        ...

    def whole(self, pieces: Sequence[Piece], text: Text) -> dict[str, Any]:
        """A choice of an answer that is not streamed."""
        ...


class CompletionFormat:
    """/v1/completions. Beyond OpenAI's fields, a choice has token_ids."""

    prefix = "cmpl"
    object = chunk = "text_completion"

    def first(self, index: int) -> dict[str, Any] | None:
        return None

    def event(self, piece: Piece, text: Text) -> dict[str, Any]:
        logprobs = self._logprobs([piece], text) if piece.logprobs else None
        choice = {"index": piece.index, "text": piece.text, "token_ids": list(piece.tokens)}
        return {**choice, "logprobs": logprobs, "finish_reason": piece.finish_reason or None}

    def whole(self, pieces: Sequence[Piece], text: Text) -> dict[str, Any]:
        return self.event(joined(pieces), text) | {"logprobs": self._logprobs(pieces, text) if any(p.logprobs for p in pieces) else None}

    def _logprobs(self, pieces: Sequence[Piece], text: Text) -> dict[str, list[Any]]:
        each = [(entry, piece.start) for piece in pieces for entry in piece.logprobs]
        return {
            "tokens": [text.token_text(entry[0][0]) for entry, _ in each],
            "token_logprobs": [written(entry[0][1]) for entry, _ in each],
            "top_logprobs": [{text.token_text(token): written(value) for token, value in entry[1:]} for entry, _ in each],
            "text_offset": [start for _, start in each],
        }


class ChatFormat:
    """/v1/chat/completions."""

    prefix = "chatcmpl"
    object = "chat.completion"
    chunk = "chat.completion.chunk"

    def first(self, index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def event(self, piece: Piece, text: Text) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text or not piece.finish_reason else {}
        return {"index": piece.index, "delta": delta, **self._rest(piece, text)}

    def whole(self, pieces: Sequence[Piece], text: Text) -> dict[str, Any]:
        piece = joined(pieces)
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": piece.index, "message": message, **self._rest(piece, text)}

    def _rest(self, piece: Piece, text: Text) -> dict[str, Any]:
        content = [self._entry(entry, text) for entry in piece.logprobs]
        return {"logprobs": {"content": content} if content else None, "finish_reason": piece.finish_reason or None}

    def _entry(self, entry: TokenLogprobs, text: Text) -> dict[str, Any]:
        chosen, *top = [_token(text.token_text(token), value) for token, value in entry]
        return {**chosen, "top_logprobs": top}


def joined(pieces: Sequence[Piece]) -> Piece:
    """All pieces of a choice as one."""
    last = pieces[-1]
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    logprobs = tuple(entry for piece in pieces for entry in piece.logprobs)
    return Piece(last.index, "".join(piece.text for piece in pieces), tokens, logprobs, 0, last.finish_reason)


def written(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB) if not math.isnan(logprob) else LEAST_LOGPROB


def _token(text: str, logprob: float) -> dict[str, Any]:
    """bytes: None if the token is a part of a character."""
    return {"token": text, "logprob": written(logprob), "bytes": None if "\ufffd" in text else list(text.encode())}
