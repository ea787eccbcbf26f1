"""The fields of a request body: which are read, which are accepted with their neutral value alone, and which are ignored.

An unknown field is refused, as OpenAI's API does: a client that misspells a field, or asks for what is not done here, is told so. A field
that is null has its default value.
"""

from __future__ import annotations

from typing import Any

from abkt.serve.api.error import ApiError

# Fields that change nothing with these values; any other value is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "early_stopping": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "add_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "priority": (0,),
    "chat_template_kwargs": ({},),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "reasoning_effort": (),
    "audio": (),
    "prediction": (),
    "verbosity": (),
    "chat_template": (),
}
# Fields that describe the client and not the answer.
IGNORED = {"user", "metadata", "safety_identifier", "prompt_cache_key", "request_id"}
COMMON = {
    *("model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed", "n", "best_of", "logprobs"),
    *("stop", "stop_token_ids", "stream", "stream_options", "ignore_eos"),
}
COMPLETION = COMMON | {"prompt"}
CHAT = COMMON | {"messages", "top_logprobs"}
STREAM_OPTIONS = {"include_usage", "continuous_usage_stats", "include_obfuscation"}


class Fields:
    """The fields of a body, without those that are null. known: the fields that are read. Raises ApiError for one that is not allowed."""

    def __init__(self, body: object, known: set[str]) -> None:
        if not isinstance(body, dict):
            raise ApiError("the request body must be a JSON object")
        self._given = {name: value for name, value in body.items() if value is not None}
        for name in sorted(body.keys() - known - IGNORED - NEUTRAL.keys()):
            raise ApiError(f"unknown field {name!r}; known are {', '.join(sorted(known))}", param=name, code="unknown_parameter")
        for name, neutral in NEUTRAL.items():
            value = self._given.get(name)
            if value is not None and not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral):
                only = f"only {' or '.join(map(repr, neutral))} is" if neutral else "it is not"
                raise ApiError(f"{name} is {shown(value)}; {only} supported", param=name, code="unsupported_value")

    def given(self, name: str) -> Any:
        """The value of a field; None if it is missing or null."""
        return self._given.get(name)

    def boolean(self, name: str) -> bool:
        value = self._given.get(name, False)
        if type(value) is not bool:
            raise ApiError(f"{name} is {shown(value)}; it must be true or false", param=name)
        return value

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        value = self._given.get(name, default)
        if type(value) is not int or not least <= value <= most:
            raise ApiError(f"{name} is {shown(value)}; it must be an integer from {least} to {most}", param=name)
        return value

    def number(self, name: str, default: float) -> float:
        value = self._given.get(name, default)
        if type(value) not in (int, float) or not -1e9 <= value <= 1e9:
            raise ApiError(f"{name} is {shown(value)}; it must be a number", param=name)
        return float(value)

    def texts(self, name: str, most: int, letters: int) -> tuple[str, ...]:
        """A text, or a list of at most `most` texts, each of 1 to `letters` letters."""
        value = self._given.get(name, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or len(value) > most or any(type(each) is not str or not 0 < len(each) <= letters for each in value):
            raise ApiError(
                f"{name} is {shown(value)}; it must be a text, or a list of at most {most} texts, of 1 to {letters} letters", param=name
            )
        return tuple(value)

    def members(self, name: str, known: set[str]) -> dict[str, Any]:
        """An object with these members, without those that are null."""
        value = self._given.get(name, {})
        if not isinstance(value, dict) or value.keys() - known:
            raise ApiError(f"{name} is {shown(value)}; it must be an object with {', '.join(sorted(known))}", param=name)
        return {key: member for key, member in value.items() if member is not None}


def shown(value: object) -> str:
    """A value for a message, not longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of too many digits to be written
        return "too large"
    return text if len(text) <= 60 else f"{text[:57]}..."
