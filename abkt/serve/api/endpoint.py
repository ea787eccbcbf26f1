"""The HTTP application of a service: /v1/completions, /v1/chat/completions, /v1/models, /health and /metrics.

docs/serving.md lists the fields. With an API key, every path but /health needs the header `Authorization: Bearer KEY`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from abkt.serve.api.answer import Answer
from abkt.serve.api.asked import MOST_TOKENS, Asked, chat, completion
from abkt.serve.api.choice import Piece
from abkt.serve.api.error import ApiError
from abkt.serve.api.formats import ChatFormat, CompletionFormat, Format
from abkt.serve.api.guard import check_client, parsed, read_body
from abkt.serve.api.text import Text
from abkt.serve.metrics import Metrics
from abkt.serve.service import Service

CHECK_S = 0.5  # seconds between two checks whether the client is still connected


class Endpoint:
    """The HTTP application of a service.

    Parameters
    ----------
    service : receives the requests; it must be running.
    metrics : the values that /metrics returns.
    model : the model name that clients see.
    text : the model's tokenizer and vocabulary.
    key : the API key that clients must send; empty: no key is needed.
    most_tokens : most tokens of one request, prompt and answer together.
    """

    def __init__(self, service: Service, metrics: Metrics, model: str, text: Text, key: str = "", most_tokens: int = MOST_TOKENS) -> None:
        self._service, self._metrics, self._model, self._text, self._key = service, metrics, model, text, key
        self._most_tokens = most_tokens
        self._created = int(time.time())
        self._text_thread = ThreadPoolExecutor(1, "text")  # one thread: a tokenizer is not safe to share, and pieces stay in order

    def app(self) -> Starlette:
        """The application, for an ASGI server such as HttpServer."""
        read_chat = partial(chat, most_tokens=self._most_tokens)
        return Starlette(
            routes=[
                Route("/health", self._route(self._health, keyed=False)),
                Route("/metrics", self._route(self._metrics_text)),
                Route("/v1/models", self._route(self._models)),
                Route("/v1/models/{model:path}", self._route(self._one_model)),
                Route("/v1/completions", self._route(partial(self._complete, completion, CompletionFormat())), methods=["POST"]),
                Route("/v1/chat/completions", self._route(partial(self._complete, read_chat, ChatFormat())), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _no_route},
        )

    def close(self) -> None:
        """End the text thread."""
        self._text_thread.shutdown(wait=False, cancel_futures=True)

    def _route(self, answer: Callable[[Request], Any], keyed: bool = True) -> Callable[[Request], Any]:
        async def checked(request: Request) -> Response:
            try:
                if keyed or not self._key:
                    check_client(request, self._key)
                return await answer(request)  # type: ignore[no-any-return]
            except ApiError as error:
                return error.response()

        return checked

    async def _health(self, request: Request) -> Response:
        status = self._service.status
        well = not status.error and bool(status.prefill) and bool(status.decode)
        facts = {"status": "ok" if well else "unavailable", "prefill": status.prefill, "decode": status.decode, "open": status.open}
        return JSONResponse(facts, 200 if well else 503)

    async def _metrics_text(self, request: Request) -> Response:
        return Response(self._metrics.text(self._service.status), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _model_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"id": self._model, "object": "model", "created": self._created, "owned_by": "abkt"}
        return facts | ({"max_model_len": self._most_tokens} if self._most_tokens < MOST_TOKENS else {})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model_facts()]})

    async def _one_model(self, request: Request) -> Response:
        if (asked := request.path_params["model"]) != self._model:
            raise ApiError(f"model {asked!r} is not served here; the model is {self._model}", 404, "model", "model_not_found")
        return JSONResponse(self._model_facts())

    async def _complete(self, read: Callable[[object, str, Text], Asked], form: Format, request: Request) -> Response:
        body = await read_body(request)

        def understand() -> Asked:
            return read(parsed(body), self._model, self._text)

        asked = await asyncio.get_running_loop().run_in_executor(self._text_thread, understand)
        answer = Answer(self._service, asked, self._text, self._text_thread)
        number = await answer.start()
        envelope = {"id": f"{form.prefix}-{number}", "object": form.object, "created": int(time.time()), "model": self._model}
        if asked.stream:
            events = self._events(answer, asked, form, {**envelope, "object": form.chunk})
            return StreamingResponse(events, media_type="text/event-stream")
        pieces = await self._all_pieces(answer, request)
        if pieces is None:
            return Response(status_code=499)
        choices = [form.whole([piece for piece in pieces if piece.index == i], self._text) for i in range(len(asked.prompts))]
        return JSONResponse({**envelope, "choices": choices, "usage": _usage(asked, answer)})

    async def _all_pieces(self, answer: Answer, request: Request) -> list[Piece] | None:
        """The pieces of a whole answer; None if the client leaves before. Raises ApiError if a choice fails."""

        async def gather() -> list[Piece]:
            return [piece async for piece in answer.pieces()]

        task = asyncio.create_task(gather())
        try:
            while not (await asyncio.wait({task}, timeout=CHECK_S))[0]:
                if await request.is_disconnected():
                    return None
            return task.result()
        finally:
            if not task.done() or task.cancelled() or task.exception():
                task.cancel()
                answer.cancel()

    async def _events(self, answer: Answer, asked: Asked, form: Format, envelope: dict[str, Any]) -> AsyncIterator[str]:
        usage_so_far = {"usage": None} if asked.include_usage else {}

        def event(choices: list[dict[str, Any]]) -> str:
            usage = {"usage": _usage(asked, answer)} if asked.usage_in_each else usage_so_far
            return _line({**envelope, "choices": choices, **usage})

        whole = False
        try:
            for i in range(len(asked.prompts)):
                if (first := form.first(i)) is not None:
                    yield event([first])
            async for piece in answer.pieces():
                yield event([form.event(piece, self._text)])
            if asked.include_usage:
                yield _line({**envelope, "choices": [], "usage": _usage(asked, answer)})
            whole = True
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield _line(error.body())
            yield "data: [DONE]\n\n"
        finally:
            if not whole:  # a choice has failed, or the client has disconnected
                answer.cancel()


def _usage(asked: Asked, answer: Answer) -> dict[str, int]:
    prompt_tokens, tokens = asked.prompt_tokens, answer.tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}


def _line(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return ApiError(f"{request.method} {request.url.path}: {error.detail}", error.status_code).response()
