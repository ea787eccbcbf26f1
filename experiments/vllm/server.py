"""One vLLM server on the CPU, as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2

START_S = 600.0  # an idle machine needs half a minute, a crowded one many
STOP_S = 20.0
ROOT = Path(__file__).parents[2]
# One thread for each server and no core binding: two servers and their network threads share a small machine.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip


def why_not(python: Path | None = None) -> str:
    """Why no vLLM server can be started with this interpreter, in one line; empty if it can."""
    if python is None:
        return "" if find_spec("vllm") else "vLLM is not installed here; `make .venv-vllm/.ready` makes a place where it is"
    if not python.is_file():
        return f"{python} does not exist; `make .venv-vllm/.ready` makes it"
    done = subprocess.run([str(python), "-c", "import vllm"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{python} cannot import vllm: {done.stderr.strip().splitlines()[-1]}"


def connector(role: str = "kv_both", policy: str = "recompute", name: str = "AbktConnector", **extra: Any) -> dict[str, Any]:
    """A kv-transfer-config. extra: the connector's own settings."""
    config: dict[str, Any] = {
        "kv_connector": name, "kv_role": role, "kv_load_failure_policy": policy, "kv_connector_extra_config": extra,
    }  # fmt: skip
    if name == "AbktConnector":
        config["kv_connector_module_path"] = "abkt.connect.vllm"
    return config


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


@dataclass(slots=True)
class VllmServer(AbstractContextManager["VllmServer"]):
    """A server from its start to its end; its lines go to a log file.

    Parameters
    ----------
    name : for messages.
    model : model folder.
    log : file for what the server prints.
    transfer : its kv-transfer-config; None: it has no connector.
    arguments : further arguments of vLLM's command.
    host, port : where it listens; port 0: a free one.
    prefix : what its command begins with, such as `ip netns exec NAME`.
    python : the interpreter; None: this one.
    environment : further environment variables.
    """

    name: str
    model: Path
    log: Path
    transfer: Mapping[str, Any] | None = None
    arguments: Sequence[str] = ()
    host: str = "127.0.0.1"
    port: int = 0
    prefix: Sequence[str] = ()
    python: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> VllmServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process; `wait` waits until it answers."""
        self.port = self.port or free_port("127.0.0.1")
        command = [*self.prefix, str(self.python or sys.executable), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.model), "--served-model-name", "m", "--host", self.host, "--port", str(self.port)]
        command += ["--dtype", "float32", "--enforce-eager", "--block-size", "32", "--disable-uvicorn-access-log", *self.arguments]
        if self.transfer:
            command += ["--kv-transfer-config", json.dumps(self.transfer)]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path, **self.environment}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)

    def wait(self, client: httpx2.Client | None = None) -> None:
        """Wait until the server answers. Raises RuntimeError, with the end of its log, if it ends before, or takes too long."""
        assert self.process is not None
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            if self.process.poll() is not None:
                break
            if self.answers(client):
                return
            time.sleep(0.5)
        late = f" within {START_S:.0f} s" if self.process.poll() is None else ""
        raise RuntimeError(f"vLLM server {self.name} did not start{late}; {self.log} ends with: {self.tail()}")

    def answers(self, client: httpx2.Client | None = None) -> bool:
        if self.prefix:  # its address is in another network namespace, so its log has to tell
            return b"Application startup complete" in self.log.read_bytes()
        try:
            return (client or httpx2).get(f"{self.url}/health", timeout=2.0).status_code == 200
        except httpx2.HTTPError:
            return False

    def tail(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        wrong = [line for line in lines if "Error" in line]
        return (wrong or lines or ["nothing"])[-1][:500]

    def lines(self, text: str) -> list[str]:
        """The lines of the log that contain a text."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if text in line]

    def kill(self) -> None:
        """End the server and its workers at once, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the server, kindly at first."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        """Signal the server's session: its engine and worker processes are in it."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
        self.process.wait()
        self.process = None
