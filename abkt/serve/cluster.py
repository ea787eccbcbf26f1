"""A real PD cluster on this machine: its workers, and runs of requests through them."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from abkt.capacity import Capacity
from abkt.net.namespaces import Namespaces
from abkt.policy.build import build
from abkt.profile import schema
from abkt.profile.expect import ask_once
from abkt.profile.schema import Profile
from abkt.records import SLO, RequestRecord, TransferRecord
from abkt.serve.control import Message, WorkerConfig
from abkt.serve.engine.engine import read_spec
from abkt.serve.frontend.frontend import Frontend
from abkt.serve.frontend.process import ClusterError
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.frontend.reservations import Expectations, Reservations
from abkt.serve.frontend.roles import RoleController
from abkt.serve.frontend.ticket import OpenRequest, Terms
from abkt.serve.frontend.workers import Workers, core_of
from abkt.serve.pacing import shaped
from abkt.spec import KVLayout, ModelSpec
from abkt.transfer.protocol.key import find_key
from abkt.transfer.transports.registry import check_transport

START_TIMEOUT_S = 180.0
LEAD_S = 0.2  # between telling the workers of a run and its first possible arrival
STATIC = {"_target_": "abkt.policy.roles.static.Static"}
IN_TURN = {"_target_": "abkt.policy.routing.round_robin.RoundRobin"}


@dataclass(frozen=True, slots=True)
class LocalClusterSpec:
    """prefill workers p0, p1, … and decode workers d0, d1, …: pool_tokens of KV on each, max_batch decoding at a time, one core and thread
    each as far as there are cores.

    paced: the profile.json of a machine that the workers stand for, sleeping its times; none: they compute. transport: see
    abkt.transfer.transports.registry. turns: the workers share one device and take turns with it. importance_window, calibration,
    layer_groups, key_file, encrypt: as in WorkerConfig.
    """

    model_folder: Path
    prefill: int = 1
    decode: int = 1
    pool_tokens: int = 16_384
    block_tokens: int = 16
    max_batch: int = 8
    device: str = "cpu"
    stall_timeout_s: float = 60.0
    importance_window: int = 32
    calibration: Path | None = None
    layer_groups: int = 1
    key_file: str = ""
    encrypt: bool = False
    paced: Path | None = None
    transport: str = "tcp"
    turns: bool = False

    def __post_init__(self) -> None:
        if self.turns and self.paced:
            raise ValueError("workers that sleep their times have no need of turns; they go with compute=real")
        if self.layer_groups < 1 or (self.paced and self.layer_groups > 1):
            raise ValueError(f"layer_groups is {self.layer_groups}; it must be at least 1, and 1 where compute is paced")
        if min(self.prefill, self.decode, self.max_batch) < 1:
            raise ValueError(
                f"{self.prefill} prefill and {self.decode} decode workers, max_batch {self.max_batch}: each must be at least 1"
            )

    def layout(self) -> KVLayout:
        return KVLayout(read_spec(self.model_folder), blocks=self.pool_tokens // self.block_tokens, block_tokens=self.block_tokens)

    @property
    def compute(self) -> str:
        """As it stands in the records."""
        return "paced" if self.paced else "real"


@dataclass(frozen=True, slots=True)
class PlannedRoleChange:
    """At a time of the run a worker takes another role, or goes (role "gone"), or comes (a name that is new)."""

    at_s: float
    worker: str
    role: str


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """What came of one run. iterations: (batch, context, seconds) of decode passes. coded: curves of what was coded at full depth.

    outputs, margins: request id -> the tokens it got, and by how much each was chosen (see Choice). roles: (when, worker, role) of
    changes that were made, "" as one began to drain. codec: which implementation coded. network: what carried the bytes, and who paced
    them.
    """

    requests: list[RequestRecord]
    transfers: list[TransferRecord]
    iterations: list[tuple[int, int, float]] = field(default_factory=list)
    coded: list[Message] = field(default_factory=list)
    outputs: dict[int, list[int]] = field(default_factory=dict)
    margins: dict[int, list[float]] = field(default_factory=dict)
    roles: list[tuple[float, str, str]] = field(default_factory=list)
    codec: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    wall_s: float = 0.0


class LocalCluster:
    """A context manager; on any way out, every process it started is gone.

    namespaces: where its workers run, one each, already entered; they need a key then. pacing: see abkt.serve.pacing; tbf with namespaces.
    """

    def __init__(self, spec: LocalClusterSpec, log_dir: Path, namespaces: Namespaces | None = None, pacing: str = "userspace") -> None:
        find_key(spec.key_file, spec.encrypt)  # better refused here than by a worker
        check_transport(spec.transport, "tbf" if namespaces else pacing)
        self._sockets, self._log_dir = "", log_dir
        self._resources = ExitStack()
        self.spec = spec
        self.layout = spec.layout()
        self.model: ModelSpec = self.layout.model
        self.roster = Workers(self._config, log_dir, namespaces)
        self._namespaces = namespaces
        self._pacing = "tbf" if namespaces else pacing
        self._numbers = itertools.count()
        self._most_tokens = min(self.model.max_tokens, spec.pool_tokens)
        self._first = {f"p{i}": "prefill" for i in range(spec.prefill)} | {f"d{i}": "decode" for i in range(spec.decode)}
        if spec.paced:
            for stage in ("prefill", "decode"):
                schema.load(spec.paced).fit(stage)

    def __enter__(self) -> LocalCluster:
        if self.spec.transport != "tcp":
            self._sockets = self._resources.enter_context(TemporaryDirectory(prefix="abkt-"))  # a path of a socket must be short
        try:
            for name, role in sorted(self._first.items(), key=lambda item: item[1]):  # decode first
                self.roster.start(name, role)
            self.roster.sort(self._first)
            self.roster.wait(START_TIMEOUT_S)
        except BaseException:
            self.close(ask=False)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(ask=kind is None)

    def close(self, ask: bool = True) -> None:
        """ask: let the workers finish what they are at; without, whoever waits for an error gets it at once."""
        self.roster.close(ask)
        self._resources.close()

    def restore(self) -> None:
        """Between two runs: everybody who was there from the start and is still there has the role again that it began with."""
        for name, role in self._first.items():
            if name in self.roster.members and self.roster.members[name].role != role:
                self.roster.restore(name, role)
        self.roster.wait(START_TIMEOUT_S)

    def frontend(
        self,
        bitrate: Mapping[str, Any],
        network: Capacity,
        slo_ttft_s: float,
        done: Callable[[OpenRequest], None],
        origin_s: float,
        profile: Profile | None = None,
        routing: Mapping[str, Any] = IN_TURN,
        coded: Callable[[Message], None] = lambda message: None,
        replace_dead: bool = False,
        longest: tuple[int, ...] = (),
        roles: Mapping[str, Any] = STATIC,
    ) -> Frontend:
        """Whoever takes requests to these workers; one at a time. Raises ValueError where the policy cannot work with the profile."""
        if profile:
            ask_once(build(bitrate), profile)
        spec, model = self.spec, self.model
        terms = Terms(
            bitrate=bitrate,
            network=network,
            pacing=self._pacing,
            slo_ttft_s=slo_ttft_s,
            profile=profile,
            compute=spec.compute,
            most_tokens=self._most_tokens,
            refusal=f"the model holds {model.max_tokens}, the pool {spec.pool_tokens}",
            replace=replace_dead,
            longest=longest[: self._most_tokens],
        )
        book = Reservations(Expectations(profile, self.layout, slo_ttft_s), bitrate, network)
        return Frontend(self.roster, book, terms, build(routing), origin_s, lambda: next(self._numbers), done, coded, RoleController(roles))

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
        *,
        routing: Mapping[str, Any] = IN_TURN,
        roles: Mapping[str, Any] = STATIC,
        concurrency: int = 0,
        changes: Sequence[PlannedRoleChange] = (),
    ) -> ClusterRun:
        """Send every prompt at its time and wait for all; `keep` gets each record as it is finished, so that none is lost.

        bitrate, routing, roles: configurations of policies (abkt.policy.build). profile: what they expect of this machine; None: nothing
        yet. usd_per_gb: what 10^9 wire bytes cost. concurrency: closed loop, so many requests open at a time, their own times not looked
        at; 0: open loop. changes: of roles, while it goes on.
        Raises ValueError where the policy cannot work with the profile, WorkerDied within 3 s of the death of the last worker of a role,
        ClusterError if nothing happens for stall_timeout_s.
        """
        started_s = time.monotonic()
        longest = max((p.tokens for p in prompts), key=len) if self.spec.paced else ()
        if longest:
            everyone = [*self.roster.serving("prefill"), *self.roster.serving("decode")]
            self.roster.ask(everyone, "prepare", "prepared", START_TIMEOUT_S, tokens=longest[: self._most_tokens])
        origin_s = time.monotonic() + LEAD_S
        run = ClusterRun([], [])

        def done(ticket: OpenRequest) -> None:
            record = ticket.record
            assert record is not None
            record.cost_usd = ticket.wire_bytes * usd_per_gb / 1e9
            run.requests.append(record)
            run.transfers.extend([*ticket.failed, *([ticket.transfer] if ticket.transfer else [])])
            if record.outcome == "completed":
                run.outputs[record.request_id], run.margins[record.request_id] = ticket.tokens, ticket.margins
            keep(record)
            progress(len(run.requests), len(prompts))

        frontend = self.frontend(
            bitrate, network, slo.ttft_s, done, origin_s, profile, routing, run.coded.append, longest=longest, roles=roles
        )
        waiting = deque(sorted(prompts, key=lambda p: (p.arrival_s, p.request_id)))
        due = deque(sorted(changes, key=lambda change: change.at_s))
        with shaped(self._namespaces, self._pacing, network, origin_s) as facts:
            while len(run.requests) < len(prompts) or not self.roster.settled:
                now_s = frontend.now_s()
                while due and due[0].at_s <= now_s:
                    change = due.popleft()
                    frontend.change(change.worker, change.role)
                if concurrency:
                    while waiting and frontend.open < concurrency and now_s >= 0:
                        frontend.submit(OpenRequest(replace(waiting.popleft(), arrival_s=frontend.now_s())))
                else:
                    while waiting and waiting[0].arrival_s <= frontend.now_s():
                        frontend.submit(OpenRequest(waiting.popleft()))
                until_s = waiting[0].arrival_s - frontend.now_s() if waiting and not concurrency else 1.0
                frontend.step(max(0.0, until_s))
                if time.monotonic() - frontend.heard_s > self.spec.stall_timeout_s and (frontend.open or not self.roster.settled):
                    raise ClusterError(
                        f"no worker said anything for {self.spec.stall_timeout_s:.0f} s; {frontend.open} requests are unfinished"
                    )
        decode = self.roster.serving("decode")
        return replace(
            run,
            requests=sorted(run.requests, key=lambda r: r.request_id),
            transfers=sorted(run.transfers, key=lambda t: t.start_s),
            iterations=[tuple(i) for message in self.roster.ask(decode, "report", "iterations", 10.0) for i in message["iterations"]],
            codec=frontend.codec,
            roles=frontend.changed,
            network={**facts, "transport": self.spec.transport},
            wall_s=time.monotonic() - started_s,
        )

    def _config(self, name: str, role: str, number: int) -> WorkerConfig:
        spec = self.spec
        return WorkerConfig(
            name=name,
            role=role,
            model_folder=str(spec.model_folder),
            blocks=spec.pool_tokens // spec.block_tokens,
            block_tokens=spec.block_tokens,
            max_batch=spec.max_batch,
            transport=spec.transport,
            sockets=self._sockets,
            core=None if spec.paced else core_of(name, number),
            device=spec.device,
            paced=str(spec.paced) if spec.paced else "",
            importance_window=spec.importance_window,
            calibration=str(spec.calibration) if spec.calibration else "",
            layer_groups=spec.layer_groups,
            turn=str(self._log_dir / "turn") if spec.turns else "",
            key_file=spec.key_file,
            encrypt=spec.encrypt,
            host=self._namespaces.address(name) if self._namespaces else "127.0.0.1",
        )
