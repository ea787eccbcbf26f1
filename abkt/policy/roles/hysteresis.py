"""A state with hysteresis: it is entered or left when m of the last n checks ask for that."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Hysteresis:
    """enter, leave: (m, n): the state changes if m of the last n checks ask for it. on: the current state."""

    enter: tuple[int, int] = (2, 3)
    leave: tuple[int, int] = (4, 5)
    on: bool = False
    _checks: deque[bool] = field(init=False)

    def __post_init__(self) -> None:
        for needed, of in (self.enter, self.leave):
            if not 1 <= needed <= of:
                raise ValueError(f"hysteresis: {needed} of {of}; the first must lie between 1 and the second")
        self._checks = deque(maxlen=self.enter[1])

    def update(self, change: bool) -> bool:
        """One check. change: whether it asks for the other state. Returns the state afterwards."""
        needed, _ = self.leave if self.on else self.enter
        self._checks.append(change)
        if sum(self._checks) >= needed:
            self.on = not self.on
            self._checks = deque(maxlen=(self.leave if self.on else self.enter)[1])
        return self.on
