"""The frontend of a real PD cluster on this machine: starts the workers, sends requests at their times, collects the records.

Not here today: more than one decode worker (routing and roles decide nothing yet; prefill workers take turns), and any host but this one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from abkt.capacity import Capacity
from abkt.net.namespaces import Namespaces
from abkt.policy.build import build
from abkt.profile.expect import ask_once, kv_deadline_s
from abkt.profile.schema import Profile
from abkt.records import SLO, RequestRecord, TransferRecord
from abkt.serve.control import Message, WorkerConfig
from abkt.serve.engine import read_spec
from abkt.serve.merge import Parts, request_record, transfer_record
from abkt.serve.pacing import shaped
from abkt.serve.prompt import Prompt
from abkt.serve.worker import ClusterError, Worker
from abkt.spec import KVLayout, ModelSpec
from abkt.transfer.key import find_key

START_TIMEOUT_S = 180.0
LEAD_S = 0.2  # between telling the workers of a run and its first possible arrival


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """prefill workers p0, p1, … and a decode worker d0: pool_tokens of KV on each, max_batch decoding at a time, one core and thread each.

    importance_window, key_file, encrypt: as in WorkerConfig.
    """

    model_folder: Path
    prefill: int = 1
    pool_tokens: int = 16_384
    block_tokens: int = 16
    max_batch: int = 8
    device: str = "cpu"
    stall_timeout_s: float = 60.0
    importance_window: int = 32
    key_file: str = ""
    encrypt: bool = False

    def layout(self) -> KVLayout:
        return KVLayout(read_spec(self.model_folder), blocks=self.pool_tokens // self.block_tokens, block_tokens=self.block_tokens)


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one run. iterations: (batch, context, seconds) of decode passes. coded: curves of what was coded at full depth.

    outputs: request id -> the tokens it got. codec: which implementation coded. network: what carried the bytes, and who paced them.
    """

    requests: list[RequestRecord]
    transfers: list[TransferRecord]
    iterations: list[tuple[int, int, float]] = field(default_factory=list)
    coded: list[Message] = field(default_factory=list)
    outputs: dict[int, list[int]] = field(default_factory=dict)
    codec: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    wall_s: float = 0.0


class Cluster:
    """A context manager; on any way out, every process it started is gone.

    namespaces: where its workers run, one each, already entered; they need a key then. pacing: see abkt.serve.pacing; tbf with namespaces.
    """

    def __init__(self, spec: ClusterSpec, log_dir: Path, namespaces: Namespaces | None = None, pacing: str = "userspace") -> None:
        find_key(spec.key_file, spec.encrypt)  # better refused here than by a worker
        self.spec = spec
        self.model: ModelSpec = read_spec(spec.model_folder)
        self._events: SimpleQueue[tuple[str, Message | None]] = SimpleQueue()
        self._workers: dict[str, Worker] = {}
        self._log_dir = log_dir
        self._namespaces = namespaces
        self._pacing = "tbf" if namespaces else pacing

    def __enter__(self) -> Cluster:
        try:
            decode = self._start("decode", "d0", core=1, peers=None)
            for i in range(self.spec.prefill):
                self._start("prefill", f"p{i}", core=i + 1 if i else 0, peers={"d0": str(decode["address"])})
        except BaseException:
            self.close(ask=False)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(ask=kind is None)

    def close(self, ask: bool = True) -> None:
        """ask: let the workers finish what they are at; without, whoever waits for an error gets it at once."""
        for worker in self._workers.values():
            worker.end(ask)
        self._workers.clear()

    def run(
        self,
        prompts: Sequence[Prompt],
        bitrate: Mapping[str, Any],
        network: Capacity,
        slo: SLO,
        profile: Profile | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        keep: Callable[[RequestRecord], None] = lambda record: None,
        usd_per_gb: float = 0.0,
    ) -> Run:
        """Send every prompt at its time and wait for all; `keep` gets each record as it is finished, so that none is lost.

        bitrate: a policy's configuration (abkt.policy.build). profile: what the policy expects of this machine; None: nothing yet.
        usd_per_gb: what 10^9 wire bytes cost.
        Raises ValueError where the policy cannot work with the profile, WorkerDied within 3 s of a worker's death, ClusterError if nothing
        happens for stall_timeout_s.
        """
        if profile:
            ask_once(build(bitrate), profile)
        started_s = time.monotonic()
        origin_s = started_s + LEAD_S
        run = Run([], [])
        parts: dict[int, Parts] = {}
        common = {"origin_s": origin_s, "slo_ttft_s": slo.ttft_s}
        self._workers["d0"].tell("run", **common)
        sources = [f"p{i}" for i in range(self.spec.prefill)]
        for source in sources:
            self._workers[source].tell(
                "run", bitrate=bitrate, network=asdict(network), pacing=self._pacing, profile=asdict(profile) if profile else None, **common
            )
        waiting = sorted(prompts, key=lambda p: (p.arrival_s, p.request_id))
        due = 0
        heard_s = time.monotonic()
        with shaped(self._namespaces, self._pacing, network, origin_s) as facts:
            while len(run.requests) < len(prompts):
                now_s = time.monotonic() - origin_s
                if due < len(waiting) and waiting[due].arrival_s <= now_s:
                    prompt = waiting[due]
                    due += 1
                    heard_s = time.monotonic()
                    reason = self._refusal(prompt)
                    if reason:
                        record = RequestRecord(
                            prompt.request_id, prompt.isl, prompt.osl, prompt.arrival_s, outcome="rejected", reason=reason
                        )
                        run.requests.append(record)
                        keep(record)
                        continue
                    source = sources[len(parts) % len(sources)]
                    parts[prompt.request_id] = Parts(prompt, source)
                    deadline_s = (
                        kv_deadline_s(profile, prompt.arrival_s, prompt.isl, slo.ttft_s) if profile else prompt.arrival_s + slo.ttft_s
                    )
                    self._workers[source].tell(
                        "submit",
                        request_id=prompt.request_id,
                        tokens=prompt.tokens,
                        osl=prompt.osl,
                        destination="d0",
                        deadline_s=deadline_s,
                    )
                    continue
                until_s = waiting[due].arrival_s - now_s if due < len(waiting) else 1.0
                message = self._next(max(0.0, min(until_s, 1.0)))
                if message is None:
                    if due == len(waiting) and time.monotonic() - heard_s > self.spec.stall_timeout_s:
                        raise ClusterError(
                            f"no worker said anything for {self.spec.stall_timeout_s:.0f} s; {len(parts)} requests are unfinished"
                        )
                    continue
                heard_s = time.monotonic()
                if message["event"] == "coded":
                    run.coded.append(message)
                    continue
                part = parts[message["request_id"]]
                part.add(message)
                if part.complete:
                    record = request_record(part, self.model)
                    record.cost_usd = record.wire_bytes * usd_per_gb / 1e9
                    run.requests.append(record)
                    if part.transfer:
                        run.transfers.append(transfer_record(part, self.model))
                    run.outputs[record.request_id] = part.outputs()
                    keep(record)
                    progress(len(run.requests), len(prompts))
        return Run(
            requests=sorted(run.requests, key=lambda r: r.request_id),
            transfers=sorted(run.transfers, key=lambda t: t.start_s),
            iterations=self._iterations(),
            coded=run.coded,
            outputs=run.outputs,
            codec=next((str(p.said["prefilled"]["codec"]) for p in parts.values() if "prefilled" in p.said), ""),
            network=facts,
            wall_s=time.monotonic() - started_s,
        )

    def _iterations(self) -> list[tuple[int, int, float]]:
        self._workers["d0"].tell("report")
        while True:
            message = self._next(10.0)
            if message is None:
                raise ClusterError("worker d0 did not report its iterations within 10 s")
            if message["event"] == "iterations":
                return [tuple(i) for i in message["iterations"]]

    def _refusal(self, prompt: Prompt) -> str:
        if prompt.isl + prompt.osl > min(self.model.max_tokens, self.spec.pool_tokens):
            most = f"the model holds {self.model.max_tokens}, the pool {self.spec.pool_tokens}"
            return f"{prompt.isl} + {prompt.osl} tokens can never fit: {most}"
        return ""

    def _start(self, role: str, name: str, core: int, peers: dict[str, str] | None) -> Message:
        cores = sorted(os.sched_getaffinity(0))
        config = WorkerConfig(
            name=name,
            model_folder=str(self.spec.model_folder),
            blocks=self.spec.pool_tokens // self.spec.block_tokens,
            block_tokens=self.spec.block_tokens,
            max_batch=self.spec.max_batch,
            core=cores[core % len(cores)],
            device=self.spec.device,
            peers=peers,
            importance_window=self.spec.importance_window,
            key_file=self.spec.key_file,
            encrypt=self.spec.encrypt,
            host=self._namespaces.address(name) if self._namespaces else "127.0.0.1",
        )
        where = self._namespaces.command(name) if self._namespaces else ()
        self._workers[name] = Worker(role, config, self._log_dir, self._events, where)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            message = self._next(1.0)
            if message and message["event"] == "ready":
                return message
        raise ClusterError(f"worker {name} was not ready after {START_TIMEOUT_S:.0f} s; see {self._workers[name].log}")

    def _next(self, timeout_s: float) -> Message | None:
        """The next message of any worker; None after timeout_s. A worker's end, or an error it tells of, raises WorkerDied."""
        try:
            name, message = self._events.get(timeout=timeout_s) if timeout_s > 0 else self._events.get_nowait()
        except Empty:
            return None
        if message is None:
            raise self._workers[name].death()
        return message
