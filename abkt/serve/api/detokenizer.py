"""The text of a growing answer, in time linear in its length.

A token's text depends on its neighbours: a character may span tokens, and some tokenizers drop a space at the start. So each step decodes
the last tokens with text together with the new ones, and takes what the new ones add. The same was first done in text-generation-inference
and vLLM (prefix and read offset). An answer that is not streamed goes through the same steps, so its text is the same.
"""

from __future__ import annotations

from abkt.serve.api.text import Text

MOST_HELD = 8  # tokens; more of them without a complete character are damaged text
CHARACTER = 3  # tokens that may be the start of a character of UTF-8, which has at most four bytes
DAMAGED = "\ufffd"


class Detokenizer:
    """The text of one answer. text: the model's tokenizer; without one, every text is empty."""

    def __init__(self, text: Text) -> None:
        self._text = text
        special = getattr(text.tokenizer, "all_special_ids", ())
        self._special = frozenset(special)
        self._known: list[int] = []  # the last tokens whose text was given out
        self._held: list[int] = []  # tokens after them, whose text is not complete yet

    def add(self, token: int) -> str:
        """The text that this token completes. An incomplete character is held back."""
        if self._text.tokenizer is None or token in self._special:
            return ""
        self._held.append(token)
        new = self._new(self._held)
        if new and not new.endswith(DAMAGED):
            return self._give(len(self._held), new)
        if len(self._held) < MOST_HELD:
            return ""
        given = len(self._held) - CHARACTER
        return self._give(given, self._new(self._held[:given]))

    def end(self) -> str:
        """The text that is still held back, after the last token."""
        return self._give(len(self._held), self._new(self._held)) if self._held else ""

    def _new(self, tokens: list[int]) -> str:
        """The text of these tokens after the known ones."""
        before, both = self._text.decode(self._known), self._text.decode(self._known + tokens)
        if both.startswith(before):
            return both[len(before) :]
        return self._text.decode(tokens)  # a byte-fallback tokenizer damages a whole run of bytes if its last character is incomplete

    def _give(self, count: int, new: str) -> str:
        self._known, self._held = self._held[:count], self._held[count:]
        return new
