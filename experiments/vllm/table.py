"""The table of the measurement, and what it says about the targets: medians, ranges, and "cannot tell" where ranges overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.vllm.plan import OURS, WAYS

PARTS = ("offer_s", "arrive_s", "write_s", "report_s")
NAMES = {"nixl": "NixlConnector"}
WON = {"met": "wins against", "not met": "loses against", "cannot tell": "cannot be told apart from"}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as a page: medians over prompts, for each link and way."""
    by = grouped(rows)
    local = {row["prompt"]: row for row in rows.values() if row["way"] == "local"}
    lines = [
        "| link, Mbit/s | way | n | TTFT, s | exposed, s | MB | distortion | ΔNLL, nats a token | first choice as local |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (link, way), found in sorted(by.items(), key=lambda each: order(*each[0])):
        pairs = [(row, local[row["prompt"]]) for row in found if row["prompt"] in local]
        worse = [b - a for row, alone in pairs for a, b in zip(row["logprobs"], alone["logprobs"])]
        equal = [a == b for row, alone in pairs for a, b in zip(row["best"], alone["best"])]
        ours = way not in ("local", "nixl")
        shown = [
            shown_link(link), NAMES.get(way, way), str(len(found)), spread(row["ttft_s"] for row in found),
            spread(row["exposed_s"] for row in found) if ours else "",
            f"{median(row['bytes'] for row in found) / 1e6:.2f}",
            f"{median(row['received_distortion'] for row in found):.4f}" if ours else "",
            f"{sum(worse) / len(worse):+.4f}" if worse and way != "local" else "",
            f"{sum(equal)} of {len(equal)}" if equal and way != "local" else "",
        ]  # fmt: skip
        lines.append("| " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", *facts(rows), ""])


def grouped(rows: dict[str, dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(link, way) -> its rows."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows.values():
        found.setdefault((" > ".join(f"{rate:g}" if rate != "inf" else rate for rate in row["link_mbit_s"]), row["way"]), []).append(row)
    return found


def facts(rows: dict[str, dict[str, Any]]) -> list[str]:
    """What the targets ask for, where computing the prompt locally wins, and how busy the machine was."""
    by = lambda way, link, name: [row[name] for row in rows.values() if row["way"] == way and row["link_mbit_s"] == [link]]  # noqa: E731
    ours, theirs, local = by("raw", "inf", "ttft_s"), by("nixl", "inf", "ttft_s"), by("local", "inf", "ttft_s")
    embedded, raw = by("embedded", 20.0, "exposed_s"), by("raw", 20.0, "exposed_s")
    coded = [row for row in rows.values() if row.get("encode_s")]
    found = []
    if ours and theirs:
        found.append(
            f"* TTFT of raw against NixlConnector, link not shaped: {spread(ours)} s against {spread(theirs)} s; target of 1.1 times: "
            f"{within(ours, [1.1 * seconds for seconds in theirs])}."
        )
    if embedded and raw:
        found.append(
            f"* Exposed transfer of embedded over raw's at 20 Mbit/s: {median(embedded) / median(raw):.2f} (target: at most 0.45: "
            f"{within(embedded, [0.45 * seconds for seconds in raw])})."
        )
    if coded:
        ratio = median(row["held_s"] / row["encode_s"] for row in coded)
        held, encode = (median(row[name] for row in coded) * 1e3 for name in ("held_s", "encode_s"))
        found.append(
            f"* Blocks held {held:.0f} ms, encoding {encode:.0f} ms, ratio {ratio:.2f} (target: at most 1.2); {len(coded)} prefills."
        )
    for way in OURS:
        parts = [row for row in rows.values() if row["way"] == way and row["link_mbit_s"] == ["inf"]]
        if parts:
            shown = ", ".join(f"{name[:-2]} {median(row[name] for row in parts) * 1e3:.0f} ms" for name in PARTS)
            found.append(f"* Parts of a load of {way}, link not shaped: {shown}.")
    if local:
        found += [
            f"* Computing the prompt on the decode server takes {spread(local)} s. Against the TTFT there, it {against(rows, local, 0.0)}.",
            f"* Against the prefill and that TTFT together, it {against(rows, local, 1.0)}.",
        ]
    load = [row["load"] for row in rows.values()]
    return [*found, f"* Load average of the machine: {min(load):.1f} to {max(load):.1f}."] if load else found


def against(rows: dict[str, dict[str, Any]], local: Sequence[float], prefill: float) -> str:
    """Where computing locally is faster, slower, or cannot be told apart. prefill: how often the prefill's time counts."""
    groups: dict[str, list[str]] = {}
    for (link, way), found in sorted(grouped(rows).items(), key=lambda each: order(*each[0])):
        if way != "local":
            seconds = [row["ttft_s"] + prefill * row["prefill_s"] for row in found]
            groups.setdefault(WON[within(local, seconds)], []).append(f"{NAMES.get(way, way)} ({shown_link(link)})")
    return "; ".join(f"{said} {', '.join(names) if len(groups) > 1 else 'every way on every link'}" for said, names in groups.items())


def within(values: Sequence[float], limits: Sequence[float]) -> str:
    """Whether all values are within all limits, or none is within any."""
    return "met" if max(values) <= min(limits) else "not met" if min(values) > max(limits) else "cannot tell"


def shown_link(link: str) -> str:
    return "not shaped" if link == "inf" else link.replace(" > ", ", then ")


def order(link: str, way: str) -> tuple[float, int]:
    """Fast links first; links that change last."""
    return (-float(link) if ">" not in link else 0.0), WAYS.index(way)


def spread(values: Any) -> str:
    """The median, and from where to where if there are several."""
    ordered = sorted(values)
    return f"{median(ordered):.2f}" + (f" ({ordered[0]:.2f}–{ordered[-1]:.2f})" if len(ordered) > 1 else "")


def median(values: Any) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if len(ordered) % 2 else sum(ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1]) / 2
