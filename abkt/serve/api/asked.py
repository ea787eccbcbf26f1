"""What a request body asks for, read from the fields of /v1/completions or /v1/chat/completions."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from abkt.serve.api.error import ApiError
from abkt.serve.api.fields import CHAT, COMPLETION, STREAM_OPTIONS, Fields, shown
from abkt.serve.api.text import Text
from abkt.serve.engine.generation import LOGPROBS_CAP, SEED_CAP, Sampling
from abkt.serve.frontend.prompt import Prompt

COMPLETION_TOKENS = 16  # max_tokens of a completion that names none, as in OpenAI's API
CHAT_TOKENS = 1024  # of a chat: OpenAI has no limit, but memory is reserved here for what a request may need
MOST_TOKENS = 1 << 24
MOST_CHOICES = 16
STOPS = (16, 256)  # most stop strings, and letters of one


@dataclass(frozen=True, slots=True)
class Asked:
    """One HTTP request. prompts: one for each choice, in the order of the answer. stops: stop strings. stream: whether events are sent.

    include_usage: a last event with the usage. usage_in_each: every event has the usage so far (vLLM's continuous_usage_stats).
    """

    prompts: tuple[Prompt, ...]
    choices_each: int
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool = False
    usage_in_each: bool = False

    @property
    def prompt_tokens(self) -> int:
        return sum(prompt.isl for prompt in self.prompts[:: self.choices_each])


def completion(body: object, model: str, text: Text) -> Asked:
    """The request of a body for /v1/completions. Raises ApiError, one line that names the wrong field."""
    fields = Fields(body, COMPLETION)
    given = fields.given("prompt")
    several = isinstance(given, list) and bool(given) and all(isinstance(each, str | list) for each in given)
    if several and len(given) > MOST_CHOICES:
        raise ApiError(f"prompt is a list of {len(given)} prompts; at most {MOST_CHOICES} are taken", param="prompt")
    _check_model(fields, model)
    prompts = [text.tokens(each) for each in given] if several else [text.tokens(given)]
    return _asked(fields, text, prompts, COMPLETION_TOKENS, fields.integer("logprobs", -1, -1, LOGPROBS_CAP))


def chat(body: object, model: str, text: Text, most_tokens: int = MOST_TOKENS) -> Asked:
    """The request of a body for /v1/chat/completions. most_tokens: of prompt and answer together. Raises ApiError, one line."""
    fields = Fields(body, CHAT)
    _check_model(fields, model)
    top = fields.integer("top_logprobs", 0, 0, LOGPROBS_CAP)
    wanted = fields.boolean("logprobs")
    if top and not wanted:
        raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
    tokens = text.chat(_messages(fields.given("messages")))
    return _asked(fields, text, [tokens], max(1, min(CHAT_TOKENS, most_tokens - len(tokens))), top if wanted else -1)


def _asked(fields: Fields, text: Text, prompts: Sequence[tuple[int, ...]], default_tokens: int, logprobs: int) -> Asked:
    n = fields.integer("n", 1, 1, MOST_CHOICES)
    if fields.integer("best_of", n, 1, MOST_CHOICES) != n:
        raise ApiError(f"best_of is {fields.given('best_of')}; only the value of n, {n}, is supported", param="best_of")
    if n * len(prompts) > MOST_CHOICES:
        raise ApiError(f"{len(prompts)} prompts with n {n} are more than {MOST_CHOICES} choices", param="n")
    osl = fields.integer("max_tokens", default_tokens, 1, MOST_TOKENS)
    osl = fields.integer("max_completion_tokens", osl, 1, MOST_TOKENS)
    sampling = _sampling(fields, logprobs)
    stops = fields.texts("stop", *STOPS)
    if stops and text.tokenizer is None:
        raise ApiError("stop needs a tokenizer, and the model has none", param="stop")
    stop = () if fields.boolean("ignore_eos") else text.stop
    stream, options = fields.boolean("stream"), fields.members("stream_options", STREAM_OPTIONS)
    if options and not stream:
        raise ApiError("stream_options needs stream: true", param="stream_options")
    asked = Prompt(0, 0.0, (), osl, sampling=sampling, stop=(*stop, *_stop_token_ids(fields, text)), stream=stream or bool(stops))
    seeds = [(sampling.seed + i) % SEED_CAP for i in range(n)]
    each = [replace(asked, tokens=tokens, sampling=replace(sampling, seed=seed)) for tokens in prompts for seed in seeds]
    usage, in_each = options.get("include_usage") is True, options.get("continuous_usage_stats") is True
    return Asked(tuple(each), n, stops, stream, usage, usage and in_each)


def _check_model(fields: Fields, model: str) -> None:
    if (asked := fields.given("model")) not in (None, model):
        raise ApiError(f"model {shown(asked)} is not served here; the model is {model}", 404, "model", "model_not_found")


def _sampling(fields: Fields, logprobs: int) -> Sampling:
    seed = fields.integer("seed", secrets.randbelow(SEED_CAP), -(1 << 63), (1 << 63) - 1) % SEED_CAP
    top_k = max(0, fields.integer("top_k", 0, -1, 1 << 31))  # -1 is vLLM's word for all
    try:
        return Sampling(fields.number("temperature", 1.0), top_k, fields.number("top_p", 1.0), seed, logprobs)
    except ValueError as error:
        raise ApiError(str(error)) from None


def _stop_token_ids(fields: Fields, text: Text) -> tuple[int, ...]:
    given = fields.given("stop_token_ids") or []
    most = text.vocabulary - 1
    if not isinstance(given, list) or len(given) > 64 or any(type(token) is not int or not 0 <= token <= most for token in given):
        raise ApiError(
            f"stop_token_ids is {shown(given)}; it must be a list of at most 64 token ids from 0 to {most}", param="stop_token_ids"
        )
    return tuple(given)


def _messages(given: object) -> list[dict[str, Any]]:
    """The messages of a chat, with text contents. Raises ApiError."""
    if not isinstance(given, list) or not given:
        raise ApiError("messages must be a non-empty list of objects with role and content", param="messages")
    return [_message(message, f"messages[{i}]") for i, message in enumerate(given)]


def _message(given: object, where: str) -> dict[str, Any]:
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise ApiError(f"{where} is {shown(given)}; it must be an object with role and content", param=where)
    kept = {name: value for name, value in given.items() if value is not None}
    if unknown := sorted(kept.keys() - {"role", "content", "name"}):
        raise ApiError(f"{where} has {unknown[0]!r}; only role, content and name are supported", param=where)
    content = kept.get("content")
    if isinstance(content, list):
        parts = [part if isinstance(part, dict) else {} for part in content]
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in parts):
            raise ApiError(f"{where}: a part of content must be an object with type text and a text", param=where)
        content = "".join(part["text"] for part in parts)
    if not isinstance(content, str):
        raise ApiError(f"{where}: content is {shown(content)}; it must be a text, or a list of text parts", param=where)
    return {**kept, "content": content}
