"""Numbers, dates and links in words, for people: 19 TB, 14.9 ms, 29 November 2026. Templates have each function as a filter of its name."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from abkt.capacity import Capacity

NOTHING = "–"
MINUS = "\N{MINUS SIGN}"
SIZES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def number(value: Any) -> str:
    """Three significant digits without an exponent: 0.000932, 12.3, 1,230. Text stays as it is; nothing known is a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return count(value)
    if math.isinf(value):
        return "unlimited" if value > 0 else f"{MINUS}unlimited"
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    text = f"{rounded:,.{max(0, digits)}f}"
    return _signs(text.rstrip("0").rstrip(".") if "." in text else text)


def count(value: int) -> str:
    return _signs(f"{value:,d}")


def plural(value: int, noun: str) -> str:
    """1 request, 2 requests."""
    return f"{count(value)} {noun}" if value == 1 else f"{count(value)} {noun}s"


def size(value: float | None) -> str:
    """Bytes: 19 TB, 364 GB, 512 B."""
    if value is None or math.isnan(value):
        return NOTHING
    unit, factor = next(((unit, factor) for unit, factor in SIZES if abs(value) >= 0.9995 * factor), ("B", 1.0))
    return f"{number(float(value) / factor)} {unit}"


def seconds(value: float | None) -> str:
    """A time with its unit: 320 µs, 14.9 ms, 1.4 s, 2 min 5 s, 3 h 20 min."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "never ends"
    whole = round(abs(value))
    if whole >= 3600:
        return _signs(f"{'-' if value < 0 else ''}{whole // 3600} h {whole % 3600 // 60} min".removesuffix(" 0 min"))
    if whole >= 120:
        return _signs(f"{'-' if value < 0 else ''}{whole // 60} min {whole % 60} s".removesuffix(" 0 s"))
    if abs(value) >= 0.9995 or value == 0:
        return f"{number(float(value))} s"
    return f"{number(value * 1e3)} ms" if abs(value) >= 0.9995e-3 else f"{number(value * 1e6)} µs"


def ms(value: float | None) -> str:
    """Seconds as a number of milliseconds, for a column that names the unit."""
    return NOTHING if value is None or math.isnan(value) else _signs(f"{value * 1e3:,.1f}")


def percent(value: float | None) -> str:
    """A share: 99.5 %. What is nearly all or nearly nothing is not rounded to it."""
    if value is None or math.isnan(value):
        return NOTHING
    if 0.9995 <= value < 1 or 0 < value < 0.0005:
        return "above 99.9 %" if value > 0.5 else "below 0.1 %"
    text = f"{value * 100:,.1f}".removesuffix(".0")
    return _signs(f"{text} %")


def change(value: float | None) -> str:
    """A relative change with its sign: +1.2 %, −3.0 %."""
    return NOTHING if value is None or math.isnan(value) else f"{_signed(value)} %"


def interval(low: float | None, high: float | None) -> str:
    """A 95 % interval of a relative change: [−1.2, +3.4] %. A dash where it is unknown."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return NOTHING
    return f"[{_signed(low)}, {_signed(high)}] %"


def date(iso: str) -> str:
    """An ISO date and time as 29 November 2026, 16:27 UTC."""
    moment = datetime.fromisoformat(iso)
    zone = moment.tzname() or ""
    return f"{moment.day} {moment:%B %Y, %H:%M} {zone}".strip()


def link_rate(bytes_per_s: float) -> str:
    """80 Mbit/s, 5 Gbit/s."""
    if math.isinf(bytes_per_s):
        return "unlimited"
    value, unit = _rate(bytes_per_s)
    return f"{value} {unit}"


def link(capacity: Capacity, delay_s: float = 0.0, loss: float = 0.0) -> str:
    """A link in words: a link that swings between 80 and 8 Mbit/s every 6 s, 20 ms away."""
    more = [f"{seconds(delay_s)} away"] if delay_s else []
    more += [f"losing {percent(loss)} of packets"] if loss else []
    return ", ".join([_course(capacity), *more])


def _course(capacity: Capacity) -> str:
    rates, starts, period = capacity.bytes_per_s, capacity.starts_s, capacity.period_s
    if len(set(rates)) == 1:
        return "an unlimited link" if math.isinf(rates[0]) else f"a link of {link_rate(rates[0])}"
    low, high = _both(min(rates), max(rates))
    if len(rates) > 3:
        over = f"with {len(rates)} rates, repeated every {seconds(period)}" if math.isfinite(period) else f"with {len(rates)} rates"
        return f"a link that changes between {low} and {high}, {over}"
    if math.isinf(period):
        steps = [
            f"{'falls' if rate < before else 'rises'} to {link_rate(rate)} after {seconds(at)}"
            for before, rate, at in zip(rates, rates[1:], starts[1:])
        ]
        return f"a link of {link_rate(rates[0])} that {' and '.join(steps)}"
    spells = [end - start for start, end in zip(starts, (*starts[1:], period))]
    if len(rates) == 3 and rates[0] == rates[2]:
        turn = "falls" if rates[1] < rates[0] else "rises"
        return f"a link of {link_rate(rates[0])} that {turn} to {link_rate(rates[1])} for {seconds(spells[1])} every {seconds(period)}"
    if len(rates) == 2 and math.isclose(spells[0], spells[1]):
        first, second = _both(*rates)
        return f"a link that swings between {first} and {second} every {seconds(spells[0])}"
    turns = ", then ".join(f"{link_rate(rate)} for {seconds(spell)}" for rate, spell in zip(rates, spells))
    return f"a link that repeats {turns}"


def _both(first: float, second: float) -> tuple[str, str]:
    """Two rates; the first without its unit where both have the same one."""
    (value, unit), other = _rate(first), link_rate(second)
    return (value if other.endswith(f" {unit}") else f"{value} {unit}"), other


def _rate(bytes_per_s: float) -> tuple[str, str]:
    bits = bytes_per_s * 8
    unit, factor = next(((u, f) for u, f in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)) if bits >= 0.9995 * f), ("bit/s", 1.0))
    return number(float(bits) / factor), unit


def _signed(share: float) -> str:
    """A share in percent with its sign; 0 has none."""
    text = f"{share * 100:+,.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else _signs(text)


def _signs(text: str) -> str:
    return text.replace("-", MINUS)


FILTERS = (number, count, plural, size, seconds, ms, percent, change, interval, date, link_rate, link)
