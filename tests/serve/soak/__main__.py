"""A long run of `abkt serve` under load and faults: `python -m tests.serve.soak minutes=10 streams=50 out=FILE`.

Workers are killed, frozen and black-holed at random, links flap, strangers open connections, clients vanish, and the disk of the logs is
full for a while. Afterwards nothing may have leaked: the server's descriptors, threads and processes are counted, its memory is watched, no
block is reserved, and the pools take requests that need nearly all of one. Every answer must be the undisturbed one. One line of JSON is
added to the file for each minute, so that a run that is cut short counts as far as it got.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from tests.serve.soak.clients import Clients, get, post, questions
from tests.serve.soak.proxies import Proxies

ROOT = Path(__file__).parents[3]
PROBE = ROOT / "data" / "probe"
POOL_TOKENS = 1024
DISK_BYTES = 8 << 20
FAULTS = {"kill": 2, "freeze": 2, "hole": 3, "flap": 4, "strangers": 3, "full disk": 1}
EVERY_S = (4.0, 12.0)


class Disk:
    """A small disk, if this process may mount one; else nothing is ever full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
        self.mounted = not subprocess.run(mount, capture_output=True).returncode

    def fill(self, full: bool) -> None:
        junk = self.folder / "junk"
        if not full:
            junk.unlink(missing_ok=True)
        elif self.mounted:
            with suppress(OSError), junk.open("wb") as out:
                while True:
                    out.write(b"x" * 4096)
                    out.flush()

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=False)


class Chaos:
    """Injects faults. happened: how often each was."""

    def __init__(self, server: psutil.Process, port: int, proxies: Proxies, disk: Disk, seed: int) -> None:
        self._server, self._port, self._proxies, self._disk = server, port, proxies, disk
        self._dice, self.happened = Random(seed), Counter[str]()
        self._later: list[tuple[float, Any]] = []
        self._strangers: list[socket.socket] = []

    def step(self) -> None:
        """One fault; then those whose time is over are mended."""
        kind = self._dice.choices(list(FAULTS), list(FAULTS.values()))[0]
        workers = [child for child in self._server.children() if "abkt.serve.worker.main" in " ".join(cmdline(child))]
        if kind in ("kill", "freeze") and len(workers) >= 4:  # else a role could be without a worker for long
            with suppress(psutil.NoSuchProcess):
                self._dice.choice(workers).send_signal(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
            self.happened[kind] += 1
        elif kind in ("hole", "flap") and self._proxies.made:
            proxy = self._dice.choice(self._proxies.made[-2:])
            if kind == "hole":
                proxy.open = False
                self._later.append((time.monotonic() + self._dice.uniform(0.5, 8.0), lambda: (setattr(proxy, "open", True), proxy.cut())))
            else:
                proxy.cut()
            self.happened[kind] += 1
        elif kind == "strangers":
            ports = [self._port, *(int(proxy.address.rpartition(":")[2]) for proxy in self._proxies.made[-2:])]
            for _ in range(100):
                with suppress(OSError):
                    self._strangers.append(socket.create_connection(("127.0.0.1", self._dice.choice(ports)), timeout=5))
                    if self._dice.random() < 0.5:
                        self._strangers[-1].sendall(b"POST / HT")
            self._later.append((time.monotonic() + 5.0, self._send_away))
            self.happened[kind] += 1
        elif kind == "full disk" and self._disk.mounted:
            self._disk.fill(True)
            self._later.append((time.monotonic() + 15.0, lambda: self._disk.fill(False)))
            self.happened[kind] += 1
        self.mend(time.monotonic())

    def mend(self, now_s: float) -> None:
        due = [mend for at_s, mend in self._later if at_s <= now_s]
        self._later = [(at_s, mend) for at_s, mend in self._later if at_s > now_s]
        for mend in due:
            mend()

    def _send_away(self) -> None:
        while self._strangers:
            self._strangers.pop().close()


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def counted(server: psutil.Process) -> dict[str, int]:
    return {"descriptors": server.num_fds(), "threads": server.num_threads(), "processes": len(server.children(recursive=True))}


def quiet(port: int, prefill: int, decode: int, seconds: float) -> dict[str, Any]:
    """Wait until all workers are there and no request is open; returns the health."""
    until_s = time.monotonic() + seconds
    while True:
        health: dict[str, Any] = json.loads(get(port, "/health"))
        if health["open"] == 0 and len(health["prefill"]) == prefill and len(health["decode"]) == decode:
            return health
        if time.monotonic() > until_s:
            raise SystemExit(f"never quiet: {health}")
        time.sleep(0.5)


def settled(server: psutil.Process, before: dict[str, int], seconds: float = 90.0) -> dict[str, int]:
    """The counts, once they are not above the former ones or the time is over: idle connections are closed after a minute."""
    until_s = time.monotonic() + seconds
    while any(now > before[name] for name, now in counted(server).items()) and time.monotonic() < until_s:
        time.sleep(1.0)
    return counted(server)


def main(minutes: float, streams: int, out: Path, seed: int = 0) -> int:
    def log(**facts: Any) -> None:
        line = json.dumps({"at": time.strftime("%H:%M:%S"), **facts})
        print(line, flush=True)
        with out.open("a") as file:
            file.write(line + "\n")

    proxies = Proxies()
    with TemporaryDirectory(prefix="abkt-soak-") as folder:
        model, disk = Path(folder) / "probe", Disk(Path(folder) / "logs")
        shutil.copytree(PROBE, model)
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))  # so that a batch gives the tokens of a single row
        given = ["serve", f"model_folder={model}", "port=0", "prefill=2", "decode=2", "bitrate=lossless", f"pool_tokens={POOL_TOKENS}"]
        command = [sys.executable, "-m", "tests.serve.soak.server", *given, f"out={disk.folder / 'out'}"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "SOAK_PROXIES": proxies.address, "PYTHONPATH": str(ROOT)},
        )
        try:
            assert process.stdout is not None
            where = re.search(r"http://\S+:(\d+)", process.stdout.readline())
            assert where is not None
            port, server = int(where[1]), psutil.Process(process.pid)
            asked = questions(port, 24, seed)
            quiet(port, 2, 2, 60)
            before = settled(server, counted(server), 0)
            log(event="start", minutes=minutes, streams=streams, mounted=disk.mounted, **before, rss_mib=server.memory_info().rss >> 20)
            chaos, dice = Chaos(server, port, proxies, disk, seed), Random(seed)
            started_s = minute_s = time.monotonic()
            with Clients(port, streams, asked) as clients:
                while time.monotonic() - started_s < 60 * minutes and process.poll() is None:
                    pause_until_s = time.monotonic() + dice.uniform(*EVERY_S)
                    while time.monotonic() < pause_until_s:
                        chaos.mend(time.monotonic())
                        time.sleep(0.2)
                    chaos.step()
                    if time.monotonic() - minute_s >= 60:
                        minute_s = time.monotonic()
                        rss_mib = server.memory_info().rss >> 20
                        log(
                            minute=round((minute_s - started_s) / 60, 1),
                            **counted(server),
                            rss_mib=rss_mib,
                            outcomes=dict(clients.outcomes),
                            faults=dict(chaos.happened),
                            wrong=clients.wrong[:3],
                        )
                chaos.mend(float("inf"))
            health = quiet(port, 2, 2, 180)
            used = re.findall(r"^abkt_kv_used_ratio\S+ (\S+)", get(port, "/metrics"), re.M)
            whole = {"prompt": [5] * (POOL_TOKENS - 60), "max_tokens": 40, "temperature": 0, "ignore_eos": True, "n": 4}
            status, answer = post(port, whole)
            full = status == 200 and all(len(choice["token_ids"]) == 40 for choice in answer["choices"])
            after = settled(server, before)
            verdict = {
                "every answer equal": not clients.wrong,
                "no block reserved": not any(map(float, used)),
                "pools take a whole request": full,
                "no descriptor, thread or process more": all(after[name] <= before[name] for name in before),
            }
            log(
                event="end",
                minutes=round((time.monotonic() - started_s) / 60, 1),
                **after,
                rss_mib=server.memory_info().rss >> 20,
                workers=[*health["prefill"], *health["decode"]],
                outcomes=dict(clients.outcomes),
                faults=dict(chaos.happened),
                wrong=clients.wrong[:3],
                verdict=verdict,
            )
            return 0 if all(verdict.values()) else 1
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            disk.close()


if __name__ == "__main__":
    words = {"minutes": "10", "streams": "50", "out": "soak.jsonl", "seed": "0", **dict(word.split("=", 1) for word in sys.argv[1:])}
    sys.exit(main(float(words["minutes"]), int(words["streams"]), Path(words["out"]), int(words["seed"])))
