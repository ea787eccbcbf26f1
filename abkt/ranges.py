"""The ranges of configuration fields. A dataclass checks its own in `__post_init__`, so that no run begins with a bad value."""

from __future__ import annotations

import math
import reprlib
from typing import Any

SEED_BITS = 63  # seeds of NumPy, torch and Python hold at least that many
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 60  # most letters of a value that a message quotes


class OutOfRange(ValueError):
    """A field's value is out of range. The message begins with the field's name, so that `under` can put the owner's before it."""

    def under(self, owner: str) -> OutOfRange:
        """The same error of a field of `owner`: `ttft_s is -1; …` becomes `slo.ttft_s is -1; …`."""
        return OutOfRange(f"{owner}.{self}")


def bound(
    owner: Any,
    *names: str,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    infinite: bool = False,
) -> None:
    """Check numeric fields of a dataclass against one range.

    Parameters
    ----------
    owner : the dataclass object.
    names : its fields. A field may be None, which is not checked, a number, or a sequence of numbers.
    above, least, below, most : the range's ends; above and below are not part of it.
    infinite : whether inf is allowed, whatever the upper end is. nan never is.

    Raises
    ------
    OutOfRange : one line, such as `ttft_s is -1; it must be above 0`, for the first value out of range, or one that is no number.
    """
    for name in names:
        value = getattr(owner, name)
        several = isinstance(value, (list, tuple))
        for number in value if several else () if value is None else (value,):
            if not isinstance(number, (int, float)) or isinstance(number, bool):
                needed = "a number is needed"
            elif (
                (above is None or number > above)
                and (least is None or number >= least)
                and (below is None or number < below)
                and (most is None or number <= most)
                and -math.inf < number < math.inf
            ) or (infinite and number == math.inf):
                continue
            else:
                needed = _words(above, least, below, most, infinite)
            raise OutOfRange(f"{name} {'has' if several else 'is'} {_number(number)}; {needed}")


def check_seed(owner: Any, *names: str) -> None:
    """Check fields that seed random draws: 0 or more, and no more than every generator takes."""
    bound(owner, *(names or ("seed",)), least=0, below=1 << SEED_BITS)


def short(value: object) -> str:
    """A value as a message quotes it: a long one loses its middle."""
    return SHORT.repr(value)


def _words(above: float | None, least: float | None, below: float | None, most: float | None, infinite: bool) -> str:
    if least is not None and most is not None:
        ends = f"{_end(least)} to {_end(most)}"
    else:
        named = {"above": above, "at least": least, "below": below, "at most": most}
        ends = " and ".join(f"{word} {_end(end)}" for word, end in named.items() if end is not None) or "finite"
    return f"it must be {ends}{', or inf' if infinite else ''}"


def _end(value: float) -> str:
    """100000 as 100,000, and 2^63 by its power."""
    whole = int(value) if float(value).is_integer() else 0
    power = whole >= 10**9 and whole & (whole - 1) == 0
    return f"2^{whole.bit_length() - 1}" if power else f"{whole:,}" if 0 < whole <= 10**9 else f"{value:g}"


def _number(value: Any) -> str:
    """-1.0 as -1."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e9 else short(value)
