"""What a bench says at its end: a short table, who is fastest or that nothing competes, and plots.

Benches keep medians and no single rounds, so a difference of less than a tenth counts as a tie, and no interval is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from abkt.bench.rows import BenchRow
from experiments.report import words
from experiments.report.page import Page, Picture, Section, Table, picture
from experiments.report.verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIE = 1.1  # ratio of times below which two medians are not told apart
MEDIANS = "Medians of repeated rounds in one run; their interval is not known."
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")


@dataclass(frozen=True, slots=True)
class BenchReport:
    """title, text: of the page. table: the short one. verdict: None where nothing competes, and `text` says so."""

    title: str
    text: str
    table: Table
    verdict: Verdict | None
    pictures: Sequence[Picture] = field(default_factory=tuple)

    def page(self, rows: Sequence[BenchRow], facts: Mapping[str, str]) -> Page:
        """rows: all of the bench, for the table at the end."""
        glance = Section("At a glance", pictures=self.pictures, table=self.table)
        if len(self.table.rows) == len(rows):
            return Page(self.title, self.text, self.verdict, [glance], facts)
        every = Table(("", "value", "unit", "yardstick"), [_cells(row) for row in rows], left=("unit",))
        return Page(self.title, self.text, self.verdict, [glance, Section("All figures", table=every)], facts)


def kernels(rows: Sequence[BenchRow]) -> BenchReport:
    """Speed by depth beside a plain copy, and the installed peers beside ours."""
    speed = {(what, size): row for row in rows if "_gbps/" in row.name for what, size in [row.name.split("_gbps/")]}
    sizes = [size for what, size in speed if what.startswith("encode_")]
    largest = max(sizes, key=lambda size: int(size.partition("x")[0]), default="")
    tokens, _, block = largest.partition("x")
    shown = [(what, row) for (what, size), row in speed.items() if size == largest]
    table = Table(
        (f"{tokens} tokens, blocks of {block}", "GB/s of raw KV", "of a plain copy"),
        [
            (what.replace("_", " "), words.number(row.value), words.percent(row.value / row.yardstick) if row.yardstick else "–")
            for what, row in shown
        ],
    )
    fastest = next((row for row in rows if row.name == "over_fastest_peer"), None)
    at_4 = next((row for row in rows if row.name == "encode_4bit_over_copy"), None)
    text = (
        f"Encoding at 4 bits runs at {words.percent(at_4.value)} of the speed of a plain copy."
        if at_4
        else "The codec's kernels beside a plain copy."
    )
    if fastest is None:
        text = f"No winner: no other codec is installed here. {text}"
    lines = partial(draw_speeds, speed)
    return BenchReport(
        "Bench of the kernels",
        text,
        table,
        _peers(fastest),
        [picture(lines, "Speed of encoding and expanding by length", "Speed by prompt length.")],
    )


def _peers(row: BenchRow | None) -> Verdict | None:
    if row is None:
        return None
    name = row.unit.partition("(")[2].rstrip(")")
    if row.value > TIE:
        return Verdict(
            "use",
            "abkt",
            f"Use ABKT's codec: the fastest peer, {name}, takes {words.number(row.value)} times as long at no more error.",
            MEDIANS,
        )
    if row.value < 1 / TIE:
        return Verdict("use", name, f"{name} is faster: ABKT's codec takes {words.number(1 / row.value)} times as long.", MEDIANS)
    return Verdict("tie", "abkt", f"ABKT's codec and {name} cannot be told apart: {words.number(row.value)} times as long.", MEDIANS)


def transfer(rows: Sequence[BenchRow]) -> BenchReport:
    """Latency of one sequence by transport and layout, and ours over bare sockets."""
    latency: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row.name.startswith("latency/"):
            _, kind, layout, tokens = row.name.split("/")
            latency.setdefault((kind, layout), {})[int(tokens)] = row.value
    kinds = list(dict.fromkeys(kind for kind, _ in latency))
    longest = max((tokens for found in latency.values() for tokens in found), default=0)
    table = Table(
        ("transport", *(f"{layout}\n(ms)" for layout in ("contiguous", "block", "layer"))),
        [(kind, *(words.ms(latency[kind, layout][longest]) for layout in ("contiguous", "block", "layer"))) for kind in kinds],
        f"One sequence of {words.count(longest)} tokens. {MEDIANS}",
    )
    bare = next((row for row in rows if row.name == "raw_tcp_over_bare"), None)
    text = (
        f"Over TCP, a transfer has {words.percent(bare.value)} of the goodput of bare sockets."
        if bare
        else "Transfers by layout of the memory."
    )
    whole = {kind: latency[kind, "contiguous"] for kind in kinds}
    drawn = picture(partial(draw_latency, latency), "Latency by length, transport and layout", "Latency of one sequence.")
    return BenchReport("Bench of the transfers", text, table, _fastest(whole), [drawn])


def _fastest(latency: Mapping[str, Mapping[int, float]]) -> Verdict | None:
    """The transport that is fastest at all lengths."""
    if len(latency) < 2:
        return None
    lengths = sorted(next(iter(latency.values())))
    first = {n: min(latency, key=lambda kind: latency[kind][n]) for n in lengths}
    if len(set(first.values())) > 1:
        said = ", ".join(f"{kind} at {sum(f == kind for f in first.values())}" for kind in dict.fromkeys(first.values()))
        return Verdict("no_answer", None, f"No winner: the fastest transport depends on the length (of {len(lengths)}: {said}).", MEDIANS)
    name = first[lengths[-1]]
    next_kind = min((kind for kind in latency if kind != name), key=lambda kind: latency[kind][lengths[-1]])
    ratios = [latency[next_kind][n] / latency[name][n] for n in lengths]
    said = f"the next, {next_kind}, takes {words.number(min(ratios))} to {words.number(max(ratios))} times as long"
    if min(ratios) < TIE:
        return Verdict("tie", name, f"{name} and {next_kind} cannot be told apart at every length: {said}.", MEDIANS)
    return Verdict("use", name, f"Use {name}: it is fastest at all {len(lengths)} lengths; {said}.", MEDIANS)


def sim(rows: Sequence[BenchRow]) -> BenchReport:
    """The simulator beside its yardsticks, and beside another simulator if one ran."""
    table = Table(("", "value", "unit", "yardstick"), [_cells(row) for row in rows], left=("unit",))
    by_name = {row.name: row for row in rows}
    over = by_name.get("requests_per_cpu_s_over_dynamo")
    first = by_name.get("requests_per_cpu_s_8_nodes", rows[0])
    share = words.percent(first.value / first.yardstick) if first.yardstick else "–"
    speed = f"{words.number(first.value)} requests a CPU-second, {share} of a bare SimPy queue"
    text = f"{'' if over else 'No winner: nothing competes here. '}The simulator makes {speed}."
    drawn = picture(
        partial(draw_yardsticks, rows), "Each figure over its yardstick", "Each figure over its yardstick; the axis is logarithmic."
    )
    return BenchReport("Bench of the simulator", text, table, _simulators(over), [drawn])


def _simulators(row: BenchRow | None) -> Verdict | None:
    if row is None:
        return None
    peer, times = "Dynamo's offline mocker", words.number(max(row.value, 1 / row.value))
    if row.value > TIE:
        return Verdict("use", "abkt", f"ABKT's simulator makes {times} times as many requests a CPU-second as {peer}.", MEDIANS)
    if row.value < 1 / TIE:
        return Verdict("use", "dynamo", f"{peer} makes {times} times as many requests a CPU-second as ABKT's simulator.", MEDIANS)
    return Verdict("tie", "abkt", f"ABKT's simulator and {peer} cannot be told apart: {times} times as many requests.", MEDIANS)


REPORTS = {"kernels": kernels, "transfer": transfer, "sim": sim}


def draw_speeds(speed: Mapping[tuple[str, str], BenchRow], width_in: float) -> Figure:
    from matplotlib.figure import Figure

    from experiments.figures.style import log_scale

    figure = Figure(figsize=(width_in, 3.6))
    axes = figure.subplots()
    names = [name for name in dict.fromkeys(what for what, _ in speed) if name.startswith(("encode_", "expand_"))]
    block = next((size.partition("x")[2] for what, size in speed if what in names), "")
    depths = list(dict.fromkeys(name.partition("_")[2] for name in names))
    for name in names:
        found = sorted(
            (int(size.partition("x")[0]), row) for (what, size), row in speed.items() if what == name and size.endswith(f"x{block}")
        )
        colour = COLOURS[depths.index(name.partition("_")[2]) % len(COLOURS)]
        line = "-" if name.startswith("encode") else "--"
        axes.plot(
            [tokens for tokens, _ in found], [row.value for _, row in found], line, color=colour, marker="o", label=name.replace("_", " ")
        )
    copies = (
        sorted({(int(size.partition("x")[0]), row.yardstick or 0.0) for (what, size), row in speed.items() if what == names[0]})
        if names
        else []
    )
    axes.plot(*zip(*copies), color="#888888", linestyle=":", label="plain copy") if copies else None
    for which in ("x", "y"):
        log_scale(axes, which)  # type: ignore[arg-type]
    axes.set(xlabel="tokens of the prompt", ylabel="GB/s of raw KV")
    axes.legend(ncols=2 if width_in > 6 else 1, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_latency(latency: Mapping[tuple[str, str], Mapping[int, float]], width_in: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, 3.6))
    axes = figure.subplots()
    kinds = list(dict.fromkeys(kind for kind, _ in latency))
    lines = {"contiguous": "-", "block": "--", "layer": ":"}
    for (kind, layout), found in latency.items():
        tokens = sorted(found)
        colour = COLOURS[kinds.index(kind) % len(COLOURS)]
        axes.plot(tokens, [found[n] * 1e3 for n in tokens], lines.get(layout, "-"), color=colour, label=f"{kind}, {layout}")
    axes.set(xlabel="tokens of the prompt", ylabel="latency (ms)", xlim=(0, None), ylim=(0, None))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_yardsticks(rows: Sequence[BenchRow], width_in: float) -> Figure:
    from matplotlib.figure import Figure

    from experiments.figures.style import log_scale

    shown = [row for row in rows if row.yardstick]
    figure = Figure(figsize=(width_in, 0.9 + 0.4 * len(shown)))
    axes = figure.subplots()
    ratios = [row.value / (row.yardstick or 1.0) for row in shown]
    bars = axes.barh([row.name for row in shown], ratios, color=COLOURS[0])
    axes.bar_label(bars, [words.number(ratio) for ratio in ratios], padding=3, fontsize=9)
    log_scale(axes, "x")
    axes.axvline(1.0, color="#555555", linestyle=":")
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(xlabel="of the yardstick")
    axes.grid(axis="y", visible=False)
    return figure


def _cells(row: BenchRow) -> tuple[str, str, str, str]:
    return (
        row.name,
        words.number(float(row.value)),
        row.unit,
        words.NOTHING if row.yardstick is None else words.number(float(row.yardstick)),
    )
