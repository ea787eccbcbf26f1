"""An HTTP endpoint with OpenAI's API in front of a service: /v1/completions (with streaming), /v1/models, /health, /metrics.

Beyond OpenAI's fields, a request may have top_k and ignore_eos, and a choice has token_ids. A request with an unsupported field
(several choices, stop texts, log probabilities, …) is refused; the field is not ignored. With an API key, every path but /health needs
the header `Authorization: Bearer KEY`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from abkt.serve.engine.sampling import SEED_CAP, Sampling
from abkt.serve.errors import ClusterError
from abkt.serve.frontend.open_request import OpenRequest
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.metrics import Metrics
from abkt.serve.service import Busy, Service

BODY_CAP_BYTES = 4 << 20
CHECK_S = 0.5  # seconds between two checks whether the client is still connected
ONLY = {"n": 1, "best_of": 1, "echo": False, "logprobs": None, "suffix": None, "stop": None, "logit_bias": None}
PENALTIES = {"presence_penalty": 0, "frequency_penalty": 0}
KNOWN = {"model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "stream", "user", "ignore_eos", *ONLY, *PENALTIES}


@dataclass(frozen=True, slots=True)
class Text:
    """Converts between text and token ids. vocabulary: number of token ids. eos: the token that ends an answer; -1: none. tokenizer:
    None if the model has none; prompts must be token ids then."""

    vocabulary: int
    eos: int
    tokenizer: Any = None

    @classmethod
    def of(cls, folder: Path) -> Text:
        """The tokenizer and vocabulary of a Hugging Face model folder."""
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(folder)
        eos = config.eos_token_id
        first = eos[0] if isinstance(eos, list) else eos
        tokenizer = AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer.json").is_file() else None
        return cls(config.vocab_size, -1 if first is None else first, tokenizer)

    def tokens(self, prompt: object) -> tuple[int, ...]:
        """The token ids of a prompt. Raises ValueError, one line, if it is neither a text nor a list of ids."""
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise ValueError("the model has no tokenizer; give prompt as a list of token ids")
            prompt = self.tokenizer.encode(prompt)
        if not isinstance(prompt, list) or not prompt:
            raise ValueError("prompt must be a non-empty text or a non-empty list of token ids")
        if any(type(token) is not int or not 0 <= token < self.vocabulary for token in prompt):
            raise ValueError(f"prompt must be one text or one list of token ids from 0 to {self.vocabulary - 1}")
        return tuple(prompt)

    def text(self, tokens: list[int]) -> str:
        return "" if self.tokenizer is None else str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def prompt_of(body: object, model: str, text: Text) -> Prompt:
    """The Prompt that a request body asks for. Raises ValueError, one line that names the wrong field."""
    if not isinstance(body, dict):
        raise ValueError("the request body must be a JSON object")
    if unknown := sorted(body.keys() - KNOWN):
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(KNOWN))}")
    for field, only in {**ONLY, **PENALTIES}.items():
        if body.get(field, only) not in (only, None):
            raise ValueError(f"{field} is {body[field]!r}; only {only!r} is supported")
    if body.get("model", model) != model:
        raise ValueError(f"model {body['model']!r} is not served here; the model is {model}")
    if type(osl := body.get("max_tokens", 16)) is not int or osl < 1:
        raise ValueError(f"max_tokens is {osl!r}; it must be an integer of at least 1")
    for field in ("stream", "ignore_eos"):
        if not isinstance(body.get(field, False), bool):
            raise ValueError(f"{field} is {body[field]!r}; it must be true or false")
    defaults = {"temperature": 1.0, "seed": secrets.randbelow(SEED_CAP)}
    asked = {key: value for key in ("temperature", "top_p", "top_k", "seed") if (value := body.get(key)) is not None}
    stop = -1 if body.get("ignore_eos") else text.eos
    tokens = text.tokens(body.get("prompt"))
    return Prompt(0, 0.0, tokens, osl, sampling=Sampling.of({**defaults, **asked}), stop=stop, stream=body.get("stream", False))


class Endpoint:
    """The HTTP application of a service.

    Parameters
    ----------
    service : receives the requests; it must be running.
    metrics : the values that /metrics returns.
    model : the model name that clients see.
    text : the model's tokenizer and vocabulary.
    key : the API key that clients must send; empty: no key is needed.
    """

    def __init__(self, service: Service, metrics: Metrics, model: str, text: Text, key: str = "") -> None:
        self._service, self._metrics, self._model, self._text, self._key = service, metrics, model, text, key
        self._created = int(time.time())

    def app(self) -> Starlette:
        """The application, for an ASGI server such as uvicorn."""
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._keyed(self._metrics_text)),
                Route("/v1/models", self._keyed(self._models)),
                Route("/v1/completions", self._keyed(self._completions), methods=["POST"]),
            ]
        )

    def _keyed(self, answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def checked(request: Request) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if self._key and not hmac.compare_digest(given, self._key.encode()):
                return _error(401, "the API key is missing or wrong; send the header Authorization: Bearer KEY")
            return await answer(request)  # type: ignore[no-any-return]

        return checked

    async def _health(self, request: Request) -> Response:
        status = self._service.status
        well = not status.error and bool(status.prefill) and bool(status.decode)
        facts = {"status": "ok" if well else "unavailable", "prefill": status.prefill, "decode": status.decode, "open": status.open}
        return JSONResponse(facts, 200 if well else 503)

    async def _metrics_text(self, request: Request) -> Response:
        return Response(self._metrics.text(self._service.status), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, request: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [{"id": self._model, "object": "model", "created": self._created, "owned_by": "abkt"}]}
        )

    async def _completions(self, request: Request) -> Response:
        try:
            prompt = prompt_of(await _json_of(request), self._model, self._text)
        except OverflowError as error:
            return _error(413, str(error))
        except ValueError as error:
            return _error(400, str(error))
        loop, updates = asyncio.get_running_loop(), asyncio.Queue[list[int] | OpenRequest]()

        def tell(item: list[int] | OpenRequest) -> None:
            with suppress(RuntimeError):  # the server and its loop have ended
                loop.call_soon_threadsafe(updates.put_nowait, item)

        try:
            number = self._service.submit(prompt, tell, tell)
        except Busy as error:
            return _error(429, str(error), {"Retry-After": str(round(error.retry_after_s))})
        except ClusterError as error:
            return _error(503, str(error))
        answer = CompletionResponse(f"cmpl-{number}", int(time.time()), self._model, prompt, self._text)
        if prompt.stream:
            return StreamingResponse(self._stream(number, answer, updates), media_type="text/event-stream")
        done = None
        while done is None:
            try:
                item = await asyncio.wait_for(updates.get(), CHECK_S)
                done = item if isinstance(item, OpenRequest) else None
            except TimeoutError:
                if await request.is_disconnected():
                    self._service.cancel(number)
                    return Response(status_code=499)
        record = done.record
        assert record is not None
        if record.outcome != "completed":
            return _error(400 if record.outcome == "rejected" else 503, record.reason)
        return JSONResponse(answer.whole(done.tokens))

    async def _stream(self, number: int, answer: CompletionResponse, updates: asyncio.Queue[list[int] | OpenRequest]) -> AsyncIterator[str]:
        done = False
        try:
            while True:
                item = await updates.get()
                if isinstance(item, OpenRequest):
                    done = True
                    break
                yield _event(answer.more(item))
            assert item.record is not None
            if item.record.outcome == "completed":
                yield _event(answer.end())
            else:
                yield _event({"error": {"message": item.record.reason, "type": "server_error", "param": None, "code": None}})
            yield "data: [DONE]\n\n"
        finally:
            if not done:  # the client has disconnected
                self._service.cancel(number)


@dataclass(slots=True)
class CompletionResponse:
    """One answer in the format of OpenAI's API. streamed, tokens: the text and the tokens that were streamed so far."""

    id: str
    created: int
    model: str
    prompt: Prompt
    text: Text
    streamed: str = ""
    tokens: tuple[int, ...] = ()

    def more(self, tokens: list[int]) -> dict[str, Any]:
        """The next event of a stream. An incomplete character is held back."""
        self.tokens += tuple(tokens)
        text = self.text.text(list(self.tokens))
        piece = "" if text.endswith("\ufffd") else text.removeprefix(self.streamed)
        self.streamed += piece
        return self._body(piece, tokens, None)

    def end(self) -> dict[str, Any]:
        """The last event of a stream."""
        rest = self.text.text(list(self.tokens)).removeprefix(self.streamed)
        return {**self._body(rest, [], self._reason(self.tokens)), "usage": self._usage(len(self.tokens))}

    def whole(self, tokens: list[int]) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        return {**self._body(self.text.text(tokens), tokens, self._reason(tuple(tokens))), "usage": self._usage(len(tokens))}

    def _reason(self, tokens: tuple[int, ...]) -> str:
        return "stop" if tokens and tokens[-1] == self.prompt.stop else "length"

    def _body(self, text: str, tokens: list[int], reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "token_ids": tokens, "logprobs": None, "finish_reason": reason}
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model, "choices": [choice]}

    def _usage(self, tokens: int) -> dict[str, int]:
        isl = self.prompt.isl
        return {"prompt_tokens": isl, "completion_tokens": tokens, "total_tokens": isl + tokens}


async def _json_of(request: Request) -> object:
    """The body, parsed. Raises OverflowError above the size limit and ValueError if it is not JSON, each with one line."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_CAP_BYTES:
            raise OverflowError(f"the request body is larger than {BODY_CAP_BYTES} bytes")
    try:
        return json.loads(bytes(body))
    except (ValueError, RecursionError):
        raise ValueError("the request body is not valid JSON") from None


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status, headers)
