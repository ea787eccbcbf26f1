"""Text and token ids of the served model: its tokenizer, its chat template, and the tokens that end an answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abkt.serve.api.error import ApiError


@dataclass(frozen=True, slots=True)
class Text:
    """Converts between text and token ids.

    Parameters
    ----------
    vocabulary : number of token ids.
    stop : the tokens that end an answer.
    tokenizer : a tokenizer of transformers; None if the model has none, so that prompts must be token ids.
    """

    vocabulary: int
    stop: tuple[int, ...] = ()
    tokenizer: Any = None

    @classmethod
    def of(cls, folder: Path) -> Text:
        """The tokenizer, vocabulary and end tokens of a Hugging Face model folder."""
        from transformers import AutoConfig, AutoTokenizer

        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
        has_tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False) if has_tokenizer else None
        return cls(config.vocab_size, stop_tokens(folder, config.eos_token_id), tokenizer)

    def tokens(self, prompt: object) -> tuple[int, ...]:
        """The token ids of a prompt. Raises ApiError if it is neither a text nor a list of ids."""
        if isinstance(prompt, str):
            prompt = self._encode(prompt, special=True)
        if not isinstance(prompt, list) or not prompt:
            raise ApiError("prompt must be a non-empty text or a non-empty list of token ids", param="prompt")
        if any(type(token) is not int or not 0 <= token < self.vocabulary for token in prompt):
            raise ApiError(f"prompt must be one text or one list of token ids from 0 to {self.vocabulary - 1}", param="prompt")
        return tuple(prompt)

    def chat(self, messages: list[dict[str, Any]]) -> tuple[int, ...]:
        """The token ids of a conversation, with the model's chat template, which transformers runs in a sandbox."""
        from jinja2 import TemplateError

        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            raise ApiError("the model has no chat template; use /v1/completions", code="no_chat_template")
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, KeyError, IndexError, ValueError) as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ApiError(f"the model's chat template does not take these messages: {said}", param="messages") from None
        return self.tokens(self._encode(text, special=False))

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_text(self, token: int) -> str:
        """The text of one token by itself, for lists of log-probabilities."""
        return "" if self.tokenizer is None else str(self.tokenizer.decode([token], skip_special_tokens=False))

    def _encode(self, text: str, special: bool) -> list[int]:
        if self.tokenizer is None:
            raise ApiError("the model has no tokenizer; give prompt as a list of token ids", param="prompt")
        return list(self.tokenizer.encode(text, add_special_tokens=special))


def stop_tokens(folder: Path, config_eos: int | list[int] | None) -> tuple[int, ...]:
    """All tokens that end an answer: those of config.json and those of generation_config.json. Llama 3 has three."""
    found = [config_eos]
    path = folder / "generation_config.json"
    if path.is_file():
        found.append(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))
    tokens = [token for each in found for token in (each if isinstance(each, list) else [each]) if token is not None]
    return tuple(dict.fromkeys(tokens))
