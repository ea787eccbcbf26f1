"""A state that is entered when m of the last n looks call for it, and left when as many as that call for leaving: hysteresis by votes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Votes:
    """enter, leave: (m, n). `on` is the state now."""

    enter: tuple[int, int] = (2, 3)
    leave: tuple[int, int] = (4, 5)
    on: bool = False
    _ballots: deque[bool] = field(init=False)

    def __post_init__(self) -> None:
        for needed, of in (self.enter, self.leave):
            if not 1 <= needed <= of:
                raise ValueError(f"votes: {needed} of {of}; the first must lie between 1 and the second")
        self._ballots = deque(maxlen=self.enter[1])

    def cast(self, change: bool) -> bool:
        """One vote for the other state, or for this one. Returns the state afterwards."""
        needed, _ = self.leave if self.on else self.enter
        self._ballots.append(change)
        if sum(self._ballots) >= needed:
            self.on = not self.on
            self._ballots = deque(maxlen=(self.leave if self.on else self.enter)[1])
        return self.on
