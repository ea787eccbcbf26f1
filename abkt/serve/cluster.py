"""A real cluster with prefill and decode workers on this machine, and runs of requests through it."""

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
from abkt.profile.expect import ask_once, check_unit
from abkt.profile.schema import Profile
from abkt.records import SLO, RequestRecord, TransferRecord
from abkt.serve.commands import ROLES, Prepare, ReportIterations, WorkerConfig
from abkt.serve.errors import ClusterError
from abkt.serve.frontend.frontend import Frontend
from abkt.serve.frontend.open_request import OpenRequest
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.frontend.reservations import Expectations, Reservations
from abkt.serve.frontend.roles import WorkerRoles
from abkt.serve.frontend.terms import RunTerms
from abkt.serve.frontend.workers import Workers, core_of
from abkt.serve.pacing import shaped
from abkt.serve.reports import CodedCurves, DecodeIterations, Prepared
from abkt.serve.spec import LocalClusterSpec
from abkt.transfer.protocol.key import find_key
from abkt.transfer.transports.registry import check_transport

START_TIMEOUT_S = 180.0
LEAD_S = 0.2  # from the message that starts a run on the workers to time 0 of the run
STATIC = {"_target_": "abkt.policy.roles.static.Static"}
ROUND_ROBIN = {"_target_": "abkt.policy.routing.round_robin.RoundRobin"}


@dataclass(frozen=True, slots=True)
class PlannedRoleChange:
    """At time at_s of a run, this worker takes another role. The role "gone" ends the worker; a new name starts one."""

    at_s: float
    worker: str
    role: str


@dataclass(frozen=True, slots=True)
class ClusterRun:
    """The results of one run.

    requests, transfers: records, sorted by request id and by start. iterations: (batch size, context tokens, seconds) of decode iterations.
    coded: rate curves of each prompt that was encoded at full depth. outputs, margins: request id -> its output tokens, and the margin of
    each (see Choice). roles: (time, worker, role) of role changes; role "" means that the worker began to drain. codec: name of the
    implementation that encoded. network: the transport and the pacing. wall_s: real seconds of the run. overheads: seconds of stages whose
    time is constant, by stage; empty: they follow from the records.
    """

    requests: list[RequestRecord]
    transfers: list[TransferRecord]
    iterations: list[tuple[int, int, float]] = field(default_factory=list)
    coded: list[CodedCurves] = field(default_factory=list)
    outputs: dict[int, list[int]] = field(default_factory=dict)
    margins: dict[int, list[float]] = field(default_factory=dict)
    roles: list[tuple[float, str, str]] = field(default_factory=list)
    codec: str = ""
    network: dict[str, Any] = field(default_factory=dict)
    wall_s: float = 0.0
    overheads: dict[str, list[float]] = field(default_factory=dict)


class LocalCluster:
    """Worker processes on this machine. A context manager: on exit, also after an error, it has ended every process that it started.

    Parameters
    ----------
    spec : number, model and settings of the workers.
    log_dir : an existing folder; each worker writes NAME.log there.
    namespaces : network namespaces, already entered, one for each worker; transfers then need a key. None: all on loopback.
    pacing : the mechanism that limits the rate to the link's capacity; see `abkt.serve.pacing`. With namespaces it is always tbf.

    Raises
    ------
    ValueError : one line, if the key, the transport or the profile of paced workers cannot be used.

    Examples
    --------
    >>> with LocalCluster(LocalClusterSpec(folder), logs) as cluster:
    ...     run = cluster.run(prompts, {"_target_": "abkt.policy.bitrate.fixed.Raw"}, Capacity.constant(1e9), SLO(1.0, 0.1))
    """

    def __init__(self, spec: LocalClusterSpec, log_dir: Path, namespaces: Namespaces | None = None, pacing: str = "userspace") -> None:
        find_key(spec.key_file, spec.encrypt)  # a key that cannot be used is refused before any worker starts
        check_transport(spec.transport, "tbf" if namespaces else pacing)
        self._sockets, self._log_dir = "", log_dir
        self._resources = ExitStack()
        self.spec = spec
        self.layout = spec.layout()
        self.model = self.layout.model
        self.workers = Workers(self._config, log_dir, namespaces)
        self._namespaces = namespaces
        self._pacing = "tbf" if namespaces else pacing
        self._numbers = itertools.count()
        self._most_tokens = min(self.model.max_tokens, spec.pool_tokens)
        self._roles = {f"p{i}": "prefill" for i in range(spec.prefill)} | {f"d{i}": "decode" for i in range(spec.decode)}
        if spec.paced:
            for stage in ("prefill", "decode"):
                schema.load(spec.paced).fit(stage)

    def __enter__(self) -> LocalCluster:
        if self.spec.transport != "tcp":
            self._sockets = self._resources.enter_context(TemporaryDirectory(prefix="abkt-"))  # the path of a socket must be short
        try:
            for name, role in sorted(self._roles.items(), key=lambda item: item[1]):  # decode first
                self.workers.start(name, role)
            self.workers.sort(self._roles)
            self.workers.wait(START_TIMEOUT_S)
        except BaseException:
            self.close(ask=False)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(ask=kind is None)

    @property
    def most_tokens(self) -> int:
        """Most tokens of one request, prompt and output together."""
        return self._most_tokens

    def close(self, ask: bool = True) -> None:
        """End all workers. ask: let each worker finish its computation first."""
        self.workers.close(ask)
        self._resources.close()

    def restore(self) -> None:
        """Between two runs: return each worker that was there from the start, and still is, to its first role."""
        for name, role in self._roles.items():
            if name in self.workers.states and self.workers.states[name].role != role:
                self.workers.restore(name, role)
        self.workers.wait(START_TIMEOUT_S)

    def frontend(
        self,
        bitrate: Mapping[str, Any],
        network: Capacity,
        slo_ttft_s: float,
        done: Callable[[OpenRequest], None],
        origin_s: float,
        profile: Profile | None = None,
        routing: Mapping[str, Any] = ROUND_ROBIN,
        coded: Callable[[CodedCurves], None] = lambda curves: None,
        replace_dead: bool = False,
        longest: tuple[int, ...] = (),
        roles: Mapping[str, Any] = STATIC,
    ) -> Frontend:
        """A Frontend over these workers; use one at a time. Raises ValueError if the policy cannot work with the profile."""
        spec = self.spec
        if profile:
            from abkt.codec.calibration import load

            check_unit(profile, load(spec.calibration).predicts if spec.calibration else "")
            ask_once(build(bitrate), profile)
        terms = RunTerms(
            bitrate=bitrate,
            network=network,
            pacing=self._pacing,
            slo_ttft_s=slo_ttft_s,
            profile=profile,
            compute=spec.compute,
            most_tokens=self._most_tokens,
            limits=f"the model takes {self.model.max_tokens} tokens, and a worker's pool holds {spec.pool_tokens}",
            replace_dead=replace_dead,
            longest=longest[: self._most_tokens],
        )
        reservations = Reservations(Expectations(profile, self.layout, slo_ttft_s, spec.device), bitrate, network)
        policy, move = build(routing), WorkerRoles(roles)
        return Frontend(self.workers, reservations, terms, policy, origin_s, lambda: next(self._numbers), done, coded, move)

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
        routing: Mapping[str, Any] = ROUND_ROBIN,
        roles: Mapping[str, Any] = STATIC,
        concurrency: int = 0,
        changes: Sequence[PlannedRoleChange] = (),
    ) -> ClusterRun:
        """Submit every prompt at its arrival time, and wait until all are done.

        Parameters
        ----------
        prompts : the requests, in any order.
        bitrate, routing, roles : policy configurations, as `abkt.policy.build.build` takes them.
        network : capacity of each worker's link.
        slo : the limits that policies try to meet.
        profile : the measured costs of this machine, for the policies; None: no costs are known.
        progress : called with (requests done, all requests).
        keep : called with each record as soon as it is made, so that no record is lost if the run fails.
        usd_per_gb : price of 10**9 wire bytes.
        concurrency : number of requests kept open, whatever their arrival times (closed loop); 0: requests arrive at their arrival times.
        changes : role changes during the run.

        Raises
        ------
        ValueError : if a policy cannot work with the profile.
        WorkerDied : within 3 s of the death of the last worker of a role.
        ClusterError : if no worker reports anything for spec.stall_timeout_s, or the last worker of a role died in an earlier run.
        """
        if gone := [role for role in ROLES if not self.workers.will_serve(role)]:
            raise ClusterError(f"the last {gone[0]} worker died in an earlier run; start a new cluster")
        started_s = time.monotonic()
        longest = max((p.tokens for p in prompts), key=len) if self.spec.paced else ()
        if longest:
            everyone = [*self.workers.serving("prefill"), *self.workers.serving("decode")]
            self.workers.ask(everyone, Prepare(longest[: self._most_tokens]), Prepared, START_TIMEOUT_S)
        origin_s = time.monotonic() + LEAD_S
        run = ClusterRun([], [])

        def done(request: OpenRequest) -> None:
            record = request.record
            assert record is not None
            record.cost_usd = request.wire_bytes * usd_per_gb / 1e9
            run.requests.append(record)
            run.transfers.extend([*request.failed_transfers, *([request.transfer] if request.transfer else [])])
            if record.outcome == "completed":
                run.outputs[record.request_id], run.margins[record.request_id] = request.tokens, request.margins
            keep(record)
            progress(len(run.requests), len(prompts))

        frontend = self.frontend(
            bitrate, network, slo.ttft_s, done, origin_s, profile, routing, run.coded.append, longest=longest, roles=roles
        )
        waiting = deque(sorted(prompts, key=lambda p: (p.arrival_s, p.request_id)))
        due = deque(sorted(changes, key=lambda change: change.at_s))
        with shaped(self._namespaces, self._pacing, network, origin_s) as facts:
            while len(run.requests) < len(prompts) or not self.workers.settled:
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
                if time.monotonic() - frontend.heard_s > self.spec.stall_timeout_s and (frontend.open or not self.workers.settled):
                    raise ClusterError(
                        f"no worker reported anything for {self.spec.stall_timeout_s:.0f} s; {frontend.open} requests are unfinished"
                    )
        answers = self.workers.ask(self.workers.serving("decode"), ReportIterations(), DecodeIterations, 10.0)
        return replace(
            run,
            requests=sorted(run.requests, key=lambda r: r.request_id),
            transfers=sorted(run.transfers, key=lambda t: t.start_s),
            iterations=[iteration for answer in answers for iteration in answer.iterations],
            codec=frontend.codec,
            roles=frontend.role_changes,
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
            dtype=spec.compute_dtype().dtype,
            paced=str(spec.paced) if spec.paced else "",
            importance_window=spec.importance_window,
            calibration=str(spec.calibration) if spec.calibration else "",
            layer_groups=spec.layer_groups,
            device_lock=str(self._log_dir / "device.lock") if spec.shares_device else "",
            key_file=spec.key_file,
            encrypt=spec.encrypt,
            host=self._namespaces.address(name) if self._namespaces else "127.0.0.1",
        )
