"""What a trace does not say: the unit of its times, the tokens that a hash stands for, and the step in which its times come.

Mooncake's and Qwen-Bailian's traces have the same keys. Mooncake counts milliseconds and hashes 512 tokens; Bailian counts seconds and
hashes 16. So both are inferred from the numbers, and left open where the numbers allow more than one answer.

Not modelled: units other than seconds and milliseconds; hashes of blocks that are not full.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median

MOST_PER_S, LEAST_PER_S = 1_000.0, 1 / 60  # rates of arrivals between which a trace of a service lies
PUBLISHED = {512: "ms", 16: "s"}  # tokens of a hash -> unit of the times, in the published traces
POWERS = tuple(1 << power for power in range(15))
SCALE = 1_000_000  # times are compared to a millionth of their unit
JITTER = 0.02  # of a step, relative


def hash_tokens(blocks: Iterable[tuple[int, int]]) -> int:
    """The tokens that a hash stands for, from (prompt tokens, number of hashes) of each request with hashes; 0 if they do not tell.

    Every number of hashes must be the prompt's tokens divided by it, rounded up. A published size wins; else only one power of two may do.
    """
    low, high = 1, math.inf
    for isl, count in blocks:
        low = max(low, -(-isl // count))
        if count > 1:
            high = min(high, -(-isl // (count - 1)) - 1)
    possible = [size for size in POWERS if low <= size <= high]
    published = [size for size in PUBLISHED if size in possible]
    if len(published) == 1:
        return published[0]
    return possible[0] if len(possible) == 1 and high < math.inf else 0


def time_unit(times: Sequence[float], hash_tokens: int) -> str:
    """`s` or `ms`; empty if the times do not tell. hash_tokens: tokens of a hash, 0 if not known.

    Read as milliseconds a trace must not have more than 1,000 requests per second, and read as seconds not fewer than one a minute. Where
    both are possible, hashes of a published size tell whose trace it is. Where all times are equal, the unit has no meaning.
    """
    span = times[-1] - times[0]
    if span <= 0:
        return "ms"
    per_unit = (len(times) - 1) / span
    if per_unit * 1000 > MOST_PER_S:
        return "s"
    if per_unit < LEAST_PER_S:
        return "ms"
    return PUBLISHED.get(hash_tokens, "")


def tie_widths(times_s: Sequence[float]) -> dict[float, float]:
    """Each time that several requests share -> the seconds after it within which they may have arrived.

    If most requests share their time, and the times lie whole steps apart (3 s in Mooncake's files), a width is the step or the gap to the
    next time, whichever is shorter. Otherwise ties are chance, and a width is the resolution of the times: their greatest common divisor.
    """
    counts = Counter(times_s)
    starts = sorted(counts)
    gaps = [after - before for before, after in pairwise(starts)]
    tied = {start for start, count in counts.items() if count > 1}
    if not gaps or not tied:
        return {}
    least, usual = min(gaps), median(gaps)
    stepped = all(abs(gap / least - round(gap / least)) <= JITTER * round(gap / least) for gap in gaps)
    if stepped and sum(counts[start] for start in tied) * 2 > len(times_s):
        return {start: min(gap, usual) for start, gap in zip(starts, [*gaps, usual]) if start in tied}
    resolution_s = math.gcd(*(round(gap * SCALE) for gap in gaps)) / SCALE
    return dict.fromkeys(tied, resolution_s)
