"""`abkt bench sim`: speed, memory and start time of the simulator. Each measurement runs in a process of its own.

Speed is requests per CPU-second of building and running the simulation with network, memory, codec and records; its yardstick is a bare
SimPy queue (no network, memory, codec or records) on the same requests. Memory is the peak of a whole `abkt simulate` with its files; its
yardstick is a process that only imports. Start is the CPU time of `abkt simulate` with one request; its yardstick imports only numpy,
pyarrow and Hydra.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from abkt.arguments import read
from abkt.bench.rows import BenchRow, save, table
from abkt.profile.fingerprint import cpu_name
from abkt.ranges import bound
from experiments.lib.errors import RunError

RATE_PER_NODE = 5.0  # requests per second for each prefill node
ISL, OSL = 868, 227
VARIED = 0.8  # standard deviation / mean of the lengths, in the second row
PACKAGES = ("simpy", "numpy", "pyarrow")


@dataclass(frozen=True, slots=True)
class SimulatorBenchArguments:
    """requests: requests of the large run. few: requests of each small run. nodes: nodes of the large run, half of them prefill. repeats:
    repeats of each small run; the best one counts. out: folder for sim.json."""

    out: Path = Path("outputs/bench")
    requests: int = 1_000_000
    few: int = 20_000
    nodes: int = 1024
    repeats: int = 3

    def __post_init__(self) -> None:
        bound(self, "requests", "few", "repeats", least=1, most=1 << 30)
        bound(self, "nodes", least=2, most=100_000)


def run(given: Sequence[str]) -> None:
    """Raises ValueError, one line, for bad input."""
    arguments = read(SimulatorBenchArguments, given)
    rows = []
    for row in measure(arguments):
        rows.append(row)
        print(table([row]).splitlines()[-1], file=sys.stderr)
    facts = {"cpu": cpu_name(), "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    facts["run"] = f"{arguments.few} and {arguments.requests} requests of {ISL}/{OSL} tokens, load_aware, embedded"
    save(arguments.out / "sim.json", rows, facts)
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(table(rows))
    print(f"sim: {arguments.out / 'sim.json'}")


def measure(arguments: SimulatorBenchArguments) -> Iterator[BenchRow]:
    few, repeats = arguments.few, arguments.repeats
    bare = max(child("bare", few, 4)["requests_per_cpu_s"] for _ in range(repeats))
    for name, variation in (("requests_per_cpu_s_8_nodes", 0.0), ("requests_per_cpu_s_8_nodes_varied", VARIED)):
        found = max(child("speed", few, 4, variation)["requests_per_cpu_s"] for _ in range(repeats))
        yield BenchRow(name, found, "requests/CPU-s", bare)
    started = min(child("files", 1, 1)["cpu_s"] for _ in range(repeats))
    imported = [child("imports", 1, 1) for _ in range(repeats)]
    yield BenchRow("startup_s", started, "CPU-s", min(one["cpu_s"] for one in imported))
    idle_mib = min(one["peak_mib"] for one in imported)
    yield BenchRow("peak_mib_10k", child("files", 10_000, 4)["peak_mib"], "MiB", idle_mib)
    half = arguments.nodes // 2
    large = child("files", arguments.requests, half)
    yield BenchRow(f"requests_per_cpu_s_{arguments.nodes}_nodes", large["requests_per_cpu_s"], "requests/CPU-s", bare)
    size = "1m" if arguments.requests == 1_000_000 else str(arguments.requests)
    yield BenchRow(f"peak_mib_{size}", large["peak_mib"], "MiB", idle_mib)


def child(what: str, requests: int, half: int, variation: float = 0.0) -> dict[str, float]:
    """One measurement in a fresh interpreter. half: nodes of each role. Raises RunError, one line, if it breaks."""
    command = [sys.executable, "-m", "experiments.bench.child", what, str(requests), str(half), str(variation)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"the measurement {what} of {requests} requests broke: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
