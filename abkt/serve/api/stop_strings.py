"""Stop strings in a text that comes in pieces."""

from __future__ import annotations


class StopStrings:
    """Finds the first stop string in a growing text, also where it spans pieces. stops: non-empty strings.

    Attributes
    ----------
    found : whether a stop string has come; no text follows then.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""  # the end of the text that could be the start of a stop string
        self.found = False

    def add(self, piece: str) -> str:
        """The text that is certain: up to the stop string, or up to what could become one."""
        if self.found:
            return ""
        text = self._held + piece
        starts = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        held = max(
            (size for stop in self._stops for size in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:size])), default=0
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """The text that was held back, when no more comes."""
        held, self._held = self._held, ""
        return held
