"""`abkt bench sim`: speed, memory and start time of the simulator. Each measurement runs in a process of its own.

Speed is requests per CPU-second of building and running the simulation with network, memory, codec and records; its yardstick is a bare
SimPy queue (no network, memory, codec or records) on the same requests. Memory is the peak of a whole `abkt simulate` with its files; its
yardstick is a process that only imports. Start is the CPU time of `abkt simulate` with one request; its yardstick imports only numpy,
pyarrow and Hydra. With peer=dynamo, experiments.bench.dynamo_peer adds its rows.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from abkt import compiled
from abkt.bench.rows import BenchRow, save
from abkt.module_process import module_command, module_environment
from abkt.profile.fingerprint import cpu_name
from abkt.ranges import OutOfRange, bound
from experiments.bench import dynamo_peer
from experiments.lib.errors import RunError

RATE_PER_NODE = 5.0  # requests per second for each prefill node
ISL, OSL = 868, 227
VARIED = 0.8  # standard deviation / mean of the lengths, in the second row
SMALL = 2_000.0  # requests that take about as long as the start of an interpreter
WITH_FILES = 1.5  # about how much longer a request takes with its files, in a large cluster
PACKAGES = ("simpy", "numpy", "pyarrow")
PEERS = ("", "dynamo")
PEER_REPEATS = 5


@dataclass(frozen=True, slots=True)
class SimulatorBenchArguments:
    """requests: requests of the large run. few: requests of each small run. nodes: nodes of the large run, half of them prefill. repeats:
    repeats of each small run; the best one counts. peer: another simulator to run beside this one on `few` requests, in which medians of
    five count: dynamo, or none. out: folder for sim.json."""

    out: Path = Path("outputs/bench")
    requests: int = 1_000_000
    few: int = 20_000
    nodes: int = 1024
    repeats: int = 3
    peer: str = ""

    def __post_init__(self) -> None:
        bound(self, "requests", "few", "repeats", least=1, most=1 << 30)
        bound(self, "nodes", least=2, most=100_000)
        if self.peer not in PEERS:
            raise OutOfRange(f"peer is {self.peer}; dynamo is the only one")


def run(arguments: SimulatorBenchArguments, progress: Callable[[float, str], None]) -> tuple[list[BenchRow], dict[str, str]]:
    """Measure, and write sim.json; returns the rows and facts. progress: called with the share of the work that is done, and its name."""
    if arguments.peer:
        dynamo_peer.python()  # raises ValueError before anything is measured
    rows = []
    for row in measure(arguments, progress):
        rows.append(row)
    facts = {"cpu": cpu_name(), "python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    if arguments.peer:
        facts["peer"] = f"ai-dynamo-runtime {dynamo_peer.version()}, its offline mocker with its own defaults"
    facts["simulator"] = "compiled" if compiled.in_use() else "plain Python"
    facts["run"] = f"{arguments.few} and {arguments.requests} requests of {ISL}/{OSL} tokens, load_aware, embedded"
    save(arguments.out / "sim.json", rows, facts)
    return rows, facts


def measure(arguments: SimulatorBenchArguments, progress: Callable[[float, str], None] = lambda share, name: None) -> Iterator[BenchRow]:
    few, repeats = arguments.few, arguments.repeats
    work = {
        "bare": 0.1 * few * repeats,
        "speed": 2 * few * repeats,
        "start": SMALL * repeats,
        "memory": 10_000.0,
        "large": 2.0 * arguments.requests,
        "peer": 2.0 * few * PEER_REPEATS if arguments.peer else 0.0,
    }
    total, done = sum(work.values()), 0.0

    def step(name: str, share: float = 1.0) -> None:
        nonlocal done
        done += share * work[name]
        progress(done / total, name)

    if arguments.peer:
        yield from beside_dynamo(few, lambda: step("peer", 1 / PEER_REPEATS))
    bare = max(child("bare", few, 4)["requests_per_cpu_s"] for _ in range(repeats))
    step("bare")
    for name, variation in (("requests_per_cpu_s_8_nodes", 0.0), ("requests_per_cpu_s_8_nodes_varied", VARIED)):
        found = max(child("speed", few, 4, variation)["requests_per_cpu_s"] for _ in range(repeats))
        step("speed", 0.5)
        yield BenchRow(name, found, "requests/CPU-s", bare)
    started = min(child("files", 1, 1)["cpu_s"] for _ in range(repeats))
    imported = [child("imports", 1, 1) for _ in range(repeats)]
    step("start")
    yield BenchRow("startup_s", started, "CPU-s", min(one["cpu_s"] for one in imported))
    idle_mib = min(one["peak_mib"] for one in imported)
    yield BenchRow("peak_mib_10k", child("files", 10_000, 4)["peak_mib"], "MiB", idle_mib)
    step("memory")
    half = arguments.nodes // 2
    expected_s = WITH_FILES * arguments.requests / found

    def wait(elapsed_s: float) -> None:
        progress((done + min(0.99, elapsed_s / expected_s) * work["large"]) / total, "large")

    large = child("files", arguments.requests, half, wait=wait)
    step("large")
    yield BenchRow(f"requests_per_cpu_s_{arguments.nodes}_nodes", large["requests_per_cpu_s"], "requests/CPU-s", bare)
    size = "1m" if arguments.requests == 1_000_000 else str(arguments.requests)
    yield BenchRow(f"peak_mib_{size}", large["peak_mib"], "MiB", idle_mib)


def beside_dynamo(requests: int, step: Callable[[], None]) -> Iterator[BenchRow]:
    """This simulator and Dynamo's mocker on 4 prefill and 4 decode nodes."""
    half, executable = 4, dynamo_peer.python()

    def theirs(router: str) -> dict[str, float]:
        return dynamo_peer.mocker(executable, requests, half, RATE_PER_NODE * half, ISL, OSL, router)

    yield from dynamo_peer.rows(lambda: child("speed", requests, half), theirs, requests, PEER_REPEATS, step)


def child(
    what: str, requests: int, half: int, variation: float = 0.0, wait: Callable[[float], None] = lambda elapsed_s: None
) -> dict[str, float]:
    """One measurement in a fresh interpreter. half: nodes of each role. wait: called every second with the seconds since the start.

    Raises RunError, one line, if it breaks.
    """
    command = module_command("experiments.bench.child", what, str(requests), str(half), str(variation))
    began_s = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=module_environment()) as process:
        while True:
            try:
                written, errors = process.communicate(timeout=1.0)
                break
            except subprocess.TimeoutExpired:
                wait(time.monotonic() - began_s)
    if process.returncode:
        raise RunError(f"the measurement {what} of {requests} requests broke: {errors.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(written.splitlines()[-1])
    return found
