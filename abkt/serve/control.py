"""How the frontend talks to its worker processes: one JSON object a line on the worker's stdin and stdout.

The worker's own prints, and those of its libraries, go to stderr, which is its log file. When stdin ends, the frontend is gone, and
the worker ends too: no orphan remains.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

Message = dict[str, Any]
ROLES = ("prefill", "decode")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker needs to start. role: prefill or decode, to begin with. core: the CPU it is pinned to (None: unpinned). host: to listen
    on. transport: a name of the registry; sockets: a folder for those that need one. paced: the profile.json of the machine that it
    stands for (compute=paced); empty: it computes. importance_window: last queries of a prompt that weigh its cells in slope order; 0:
    flat weights. calibration: the model's calibration.json; empty: none. layer_groups: a prompt's KV begins to leave when the first of so
    many groups of layers is computed; 1: when all are. turn: a file by which the workers of one device take turns; empty: they do not.
    key_file: the key of its transfers, empty for what ABKT_KEY_FILE names, or none; encrypt: hide them too."""

    name: str
    role: str
    model_folder: str
    blocks: int
    block_tokens: int
    max_batch: int
    core: int | None = None
    threads: int = 1
    device: str = "cpu"
    host: str = "127.0.0.1"
    transport: str = "tcp"
    sockets: str = ""
    paced: str = ""
    importance_window: int = 32
    calibration: str = ""
    layer_groups: int = 1
    turn: str = ""
    key_file: str = ""
    encrypt: bool = False


class Control:
    """The worker's end. `inbox` also takes what the worker's own threads have to say to its main loop. A ping is answered at once, whatever
    the main loop is at: silence means that the process does not run."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        threading.Thread(target=self._read, name="control", daemon=True).start()

    def say(self, event: str, **fields: object) -> None:
        with self._lock:
            self._out.write(json.dumps({"event": event, **fields}) + "\n")

    def _read(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if message["op"] == "ping":
                self.say("pong")
            else:
                self.inbox.put(message)
        self.inbox.put({"op": "stop"})
        # The main loop answers at its next message; a worker stuck in a computation must not outlive its frontend.
        threading.Timer(3.0, os._exit, args=(1,)).start()


def pin(config: WorkerConfig) -> None:
    """One core and so many threads; before torch computes anything."""
    if config.core is not None:
        os.sched_setaffinity(0, {config.core})
    import torch

    torch.set_num_threads(config.threads)
