"""One HTTP request under way: its choices are requests of the service, and their tokens become pieces of text.

Three threads take part. The service's thread delivers tokens. The text thread turns them into pieces, so that neither the service nor the
event loop waits for a tokenizer. The event loop sends the pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import suppress

from abkt.serve.api.asked import Asked
from abkt.serve.api.choice import GrowingChoice, Piece
from abkt.serve.api.error import ApiError
from abkt.serve.api.text import Text
from abkt.serve.engine.generation import TokenLogprobs
from abkt.serve.errors import ClusterError
from abkt.serve.frontend.open_request import OpenRequest
from abkt.serve.service import Busy, Service


class Answer:
    """Made in the event loop, which alone calls its methods. text_thread: an executor with one thread."""

    def __init__(self, service: Service, asked: Asked, text: Text, text_thread: Executor) -> None:
        self._service, self._asked, self._text_thread = service, asked, text_thread
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Piece | ApiError] = asyncio.Queue()
        self._choices = [GrowingChoice(i, text, prompt.stop, asked.stops) for i, prompt in enumerate(asked.prompts)]
        self._numbers: list[int] = []  # of the choices, in the service
        self._open = len(self._choices)

    @property
    def tokens(self) -> int:
        """Output tokens so far."""
        return sum(choice.tokens for choice in self._choices)

    async def start(self) -> int:
        """Submit all choices; returns the number of the first. Raises ApiError if one is not accepted; none goes on then."""
        accepted = []
        for choice, prompt in zip(self._choices, self._asked.prompts, strict=True):
            number, future = self._service.submit(prompt, self._on_tokens(choice), self._on_done(choice))
            self._numbers.append(number)
            accepted.append(asyncio.wrap_future(future))
        try:
            results = await asyncio.gather(*accepted, return_exceptions=True)
        except asyncio.CancelledError:
            self.cancel()
            raise
        for error in results:
            if error is not None:
                self.cancel()
                raise refusal(error)
        return self._numbers[0]

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all choices as they come. Raises ApiError if a choice fails."""
        while self._open:
            piece = await self._pieces.get()
            if isinstance(piece, ApiError):
                raise piece
            self._open -= bool(piece.finish_reason)
            yield piece

    def cancel(self) -> None:
        """Cancel the choices that are not done."""
        for number in self._numbers:
            self._service.cancel(number)

    def _on_tokens(self, choice: GrowingChoice) -> Callable[[list[int], list[TokenLogprobs]], None]:
        def work(tokens: list[int], logprobs: list[TokenLogprobs]) -> None:
            piece = choice.add(tokens, logprobs)
            self._tell(piece)
            if piece and choice.done:
                self._tell(choice.end())
                self._call(lambda: self._service.finish(self._numbers[choice.index]))

        return lambda tokens, logprobs: self._later(work, tokens, logprobs)

    def _on_done(self, choice: GrowingChoice) -> Callable[[OpenRequest], None]:
        def work(request: OpenRequest) -> None:
            record = request.record
            assert record is not None
            if choice.done:
                return  # it was answered when its stop string came
            if record.outcome != "completed":
                self._tell(ApiError(record.reason, 400 if record.outcome == "rejected" else 503))
                return
            if len(request.tokens) > choice.tokens:  # they were not streamed
                self._tell(choice.add(request.tokens[choice.tokens :], request.logprobs[choice.tokens :]))
            self._tell(choice.end())

        return lambda request: self._later(work, request)

    def _later(self, work: Callable[..., None], *given: object) -> None:
        """Run `work` in the text thread."""
        with suppress(RuntimeError):  # the server has ended
            self._text_thread.submit(work, *given)

    def _tell(self, item: Piece | ApiError | None) -> None:
        if item is not None:
            self._call(lambda: self._pieces.put_nowait(item))

    def _call(self, work: Callable[[], None]) -> None:
        """Run `work` in the event loop."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(work)


def refusal(error: BaseException) -> ApiError:
    """The answer to a request that the service did not accept."""
    if isinstance(error, Busy):
        return ApiError(str(error), 429, code="rate_limit_exceeded", headers={"Retry-After": str(round(error.retry_after_s))})
    if isinstance(error, ClusterError):
        return ApiError(str(error), 503)
    raise error
