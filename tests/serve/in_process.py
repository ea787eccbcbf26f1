"""A prefill and a decode worker in threads of the test process, without a frontend, so that a test can read their pools."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from abkt.capacity import Capacity
from abkt.serve.commands import StartDecodeRun, StartPrefillRun, SubmitPrompt, WorkerCommand, WorkerConfig
from abkt.serve.engine.attention import SequenceRow
from abkt.serve.engine.engine import Engine
from abkt.serve.engine.generation import Sampling
from abkt.serve.engine.sampling import Choice
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.reports import AttemptFailed, AttemptFinished, WorkerReport
from abkt.serve.worker.control import Inbox
from abkt.serve.worker.decode import DecodeWorker
from abkt.serve.worker.equipment import Equipment, equip
from abkt.serve.worker.events import FrontendGone
from abkt.serve.worker.prefill import PrefillWorker


class FakeControl:
    """Takes the place of a worker's Control. reports: the messages that the worker sent to its frontend."""

    def __init__(self) -> None:
        self.inbox: Inbox = SimpleQueue()
        self.reports: SimpleQueue[WorkerReport] = SimpleQueue()

    def say(self, report: WorkerReport) -> None:
        self.reports.put(report)

    def tell(self, command: WorkerCommand) -> None:
        self.inbox.put(command)


@dataclass
class Watched:
    """An engine that records its iterations. first_kv: each row's tokens and its KV in the pool when it joined the batch. steps: each
    iteration's rows, their last tokens, and the tokens chosen."""

    engine: Engine
    first_kv: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    steps: list[tuple[list[int], list[int], list[Choice]]] = field(default_factory=list)
    _seen: dict[int, int] = field(default_factory=dict)
    _rows: list[SequenceRow] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self, rows: Sequence[SequenceRow], last: Sequence[int], samplings: Sequence[Sampling]) -> list[Choice]:
        for row in rows:
            if id(row) not in self._seen:
                self._seen[id(row)] = len(self._seen)
                self._rows.append(row)  # kept, so that no other row gets its id
                self.first_kv.append((row.tokens, kv_of(self.engine, row.table, row.tokens)))
        before = list(last)
        choices = self.engine.step(rows, last, samplings)
        self.steps.append(([self._seen[id(row)] for row in rows], before, choices))
        return choices


def kv_of(engine: Engine, table: Sequence[int], tokens: int) -> torch.Tensor:
    """[layers, kinds, kv_heads, tokens, head_dim]."""
    layers = range(engine.layout.model.layers)
    return torch.stack([torch.stack(engine.pool.read(table, layer, tokens)) for layer in layers])


@dataclass
class Pair:
    prefill: FakeControl
    decode: FakeControl
    watched: Watched
    decode_worker: DecodeWorker

    def run(self, prompts: Sequence[Prompt]) -> dict[int, list[int]]:
        """Submit all prompts at once; returns the tokens of each."""
        for prompt in prompts:
            self.submit(prompt)
        found: dict[int, list[int]] = {}
        while len(found) < len(prompts):
            report = self.decode.reports.get(timeout=60)
            if isinstance(report, AttemptFinished):
                found[report.attempt_id] = list(report.tokens)
        return found

    def submit(self, prompt: Prompt) -> None:
        self.prefill.tell(SubmitPrompt(prompt.request_id, prompt.tokens, "d0", 1.0, prompt.generation))

    def failure(self) -> AttemptFailed:
        """Wait for the next failure that the prefill worker reports."""
        while True:
            report = self.prefill.reports.get(timeout=60)
            if isinstance(report, AttemptFailed):
                return report


def config(folder: Path, name: str, role: str, block_tokens: int = 16, layer_groups: int = 1) -> WorkerConfig:
    sizes = {"blocks": 2048 // block_tokens, "block_tokens": block_tokens, "layer_groups": layer_groups}
    return WorkerConfig(name, role, str(folder), max_batch=4, importance_window=8, **sizes)


@contextmanager
def pair(folder: Path, bitrate: dict[str, Any], prefill_block_tokens: int = 16, layer_groups: int = 1) -> Iterator[Pair]:
    """prefill_block_tokens: block size of the prefill worker; that of the decode worker is 16 tokens."""
    source = config(folder, "p0", "prefill", prefill_block_tokens, layer_groups)
    target = config(folder, "d0", "decode", layer_groups=layer_groups)
    controls = FakeControl(), FakeControl()
    there = equip(target)
    watched = Watched(there.engine)  # type: ignore[arg-type]
    decode = DecodeWorker(target, controls[1], Equipment(watched, there.codec, there.segments))  # type: ignore[arg-type]
    prefill = PrefillWorker(source, controls[0], equip(source))
    threads = [threading.Thread(target=worker.serve, daemon=True) for worker in (prefill, decode)]
    for thread in threads:
        thread.start()
    link = Capacity.constant(math.inf)
    controls[1].tell(StartDecodeRun(0.0, link))
    controls[0].tell(StartPrefillRun(0.0, link, bitrate, "userspace", None, {"d0": decode.receiver.address}))
    try:
        yield Pair(*controls, watched, decode)
    finally:
        for control, thread in zip(controls, threads, strict=True):
            control.inbox.put(FrontendGone())
            thread.join(timeout=30)
            assert not thread.is_alive()
