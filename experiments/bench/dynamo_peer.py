"""`abkt bench sim peer=dynamo`: this simulator beside the offline mocker of NVIDIA Dynamo, in CPU-seconds.

Both simulate the same number of prefill and decode nodes, lengths and rate of Poisson arrivals, in fresh processes that alternate. `loop`
is the CPU time of building and running the simulation; `process` is that of the whole process with its imports. The mocker replays a
synthetic trace offline, with its own defaults and both of its routers; round_robin is its default and the cheaper one. It has neither a
codec, nor links that transfers share, nor a record of each request; this simulator runs with all three.

The mocker is in the package ai-dynamo-runtime (extra `dynamo`). ABKT_DYNAMO names the Python of another environment that has it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from abkt.bench.rows import BenchRow
from experiments.lib.errors import RunError

CHILD = Path(__file__).with_name("dynamo_child.py")
ROUTERS = ("round_robin", "kv_router")
HOW = "pip install 'abkt[dynamo]', or name the Python of an environment that has ai-dynamo-runtime in ABKT_DYNAMO"

Measurement = dict[str, float]


def python() -> str:
    """The Python that runs the mocker. Raises ValueError, one line, if it has no mocker."""
    named = os.environ.get("ABKT_DYNAMO", "")
    if not named and find_spec("dynamo") is None:
        raise ValueError(f"peer=dynamo: ai-dynamo-runtime is not installed: {HOW}")
    if named:
        try:
            found = subprocess.run([named, "-c", "import dynamo._core"], capture_output=True, check=False).returncode == 0
        except OSError:
            found = False
        if not found:
            raise ValueError(f"peer=dynamo: ABKT_DYNAMO={named} is no Python that has ai-dynamo-runtime")
    return named or sys.executable


def version() -> str:
    """The version of the mocker's package."""
    command = [python(), "-c", "import importlib.metadata as m; print(m.version('ai-dynamo-runtime'))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def mocker(executable: str, requests: int, half: int, rate_per_s: float, isl: int, osl: int, router: str) -> Measurement:
    """One run of the mocker. Raises RunError, one line, if it breaks."""
    command = [executable, "-P", str(CHILD), *(str(value) for value in (requests, half, rate_per_s, isl, osl)), router]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RunError(f"the mocker of {requests} requests broke: {process.stderr.strip().splitlines()[-1]}")
    found: Measurement = json.loads(process.stdout.splitlines()[-1])
    return found


def rows(
    ours: Callable[[], Measurement], theirs: Callable[[str], Measurement], requests: int, repeats: int, step: Callable[[], None]
) -> Iterator[BenchRow]:
    """Rows from medians of `repeats` alternating runs. ours, theirs(router): one run in a fresh process. step: called after each round."""
    found: dict[str, list[Measurement]] = {who: [] for who in ("ours", *ROUTERS)}
    for _ in range(repeats):
        found["ours"].append(ours())
        for router in ROUTERS:
            found[router].append(theirs(router))
        step()
    loop = {who: statistics.median(run["requests_per_cpu_s"] for run in runs) for who, runs in found.items()}
    process = {who: requests / statistics.median(run["cpu_s"] for run in runs) for who, runs in found.items()}
    first, second = ROUTERS
    yield BenchRow("requests_per_cpu_s_over_dynamo", loop["ours"] / loop[first], f"x the mocker with {first}, loop", 1.0)
    yield BenchRow(f"requests_per_cpu_s_over_dynamo_{second}", loop["ours"] / loop[second], f"x the mocker with {second}, loop", 1.0)
    yield BenchRow("requests_per_cpu_s_beside_dynamo", loop["ours"], "requests/CPU-s, loop", loop[first])
    yield BenchRow("requests_per_process_cpu_s_beside_dynamo", process["ours"], "requests/CPU-s, process", process[first])
