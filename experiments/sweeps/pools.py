"""Where simulations run: in this process, in processes of this machine, in a Ray cluster, or in jobs of Slurm (submitit).

Every pool is an executor of the standard library, so that what uses it need not know which one it is. Ray and submitit are optional
packages. A thread of this process waits for each of their tasks, so that no more of them than `workers` are under way.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_all_start_methods, get_context, get_start_method, set_start_method
from pathlib import Path
from typing import Any, Literal, get_args

from abkt.ranges import bound
from experiments.lib.config import MOST_WORKERS

PoolKind = Literal["processes", "serial", "ray", "submitit"]
KINDS = get_args(PoolKind)
OPTIONAL = ("ray", "submitit")
JOBS = "jobs"  # submitit's folder within the folder of results


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Where simulations run.

    Parameters
    ----------
    kind : `processes` of this machine; `serial`, one after another in this process; `ray`; `submitit`, Slurm's jobs where there is Slurm.
    workers : most simulations at a time; None: one a core, of this machine or of the Ray cluster.
    options : further settings: of ray.init, such as {address: auto}, or of submitit, such as {slurm_partition: cpu, timeout_min: 60}.

    Raises
    ------
    ValueError
        One line, where the package is not installed, or the options are of a pool that takes none.
    """

    kind: str = "processes"
    workers: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"pool={self.kind} is not known; it is one of {', '.join(KINDS)}")
        bound(self, "workers", least=1, most=MOST_WORKERS)
        if self.kind in OPTIONAL and importlib.util.find_spec(self.kind) is None:
            raise ValueError(f"pool={self.kind} needs the package {self.kind}: pip install -c constraints.txt -e '.[{_extra(self.kind)}]'")
        if self.options and self.kind not in OPTIONAL:
            raise ValueError(f"pool={self.kind} takes no pool_options; they are settings of {' or '.join(OPTIONAL)}")

    def size(self, tasks: int) -> int:
        """How many of `tasks` run at a time, as far as it is known before a cluster is asked."""
        return 1 if self.kind == "serial" else min(self.workers or os.cpu_count() or 1, max(1, tasks))

    def piece(self, tasks: int) -> int:
        """How many tasks to put into one job: a job of submitit takes seconds to start, so it gets several, and each worker four jobs."""
        return -(-tasks // (4 * self.size(tasks))) if self.kind == "submitit" else 1

    def where(self, tasks: int) -> str:
        """The place in words, such as `in 2 processes`."""
        size = self.size(tasks)
        many = "" if size == 1 else "es" if self.kind == "processes" else "s"
        return {
            "serial": "in this process",
            "processes": f"in {size} process{many}",
            "ray": f"by Ray, {size} at a time" if self.workers else "by Ray, one a core of its cluster",
            "submitit": f"in {size} job{many} of submitit at a time",
        }[self.kind]


@dataclass(frozen=True, slots=True)
class Pool:
    """An open pool. slots: how many tasks run at a time."""

    executor: Executor
    slots: int

    def submit(self, work: Callable[..., Any], **named: Any) -> Future[Any]:
        """Start a task. A pool whose processes have died gives a future that says so."""
        try:
            return self.executor.submit(work, **named)
        except BrokenExecutor as error:
            broken: Future[Any] = Future()
            broken.set_exception(error)
            return broken


@contextmanager
def open_pool(spec: PoolSpec, tasks: int, folder: Path) -> Iterator[Pool]:
    """A pool for the length of a block. An exception inside the block ends it: what has not started never starts, and jobs are cancelled.

    Parameters
    ----------
    spec : which pool.
    tasks : most tasks that will be given to it at a time.
    folder : the folder of results. submitit keeps its jobs there until they have succeeded, so it must be on a file system that the jobs'
        machines share.
    """
    made = {"serial": _Serial, "processes": _processes, "ray": _Ray, "submitit": _Submitit}[spec.kind](spec, tasks, folder)
    try:
        yield Pool(made, made.slots if isinstance(made, _Remote) else spec.size(tasks))
    except BaseException:  # an interrupt, or a journal that cannot be written
        made.shutdown(wait=False, cancel_futures=True)
        if isinstance(made, _Remote):
            made.cancel()
        raise
    made.shutdown()
    if isinstance(made, _Remote):
        made.close()


class _Serial(Executor):
    """Runs each task at once, in this process."""

    def __init__(self, spec: PoolSpec, tasks: int, folder: Path) -> None: ...

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*given, **named))
        except Exception as error:  # noqa: BLE001  # as every executor: the future raises it again
            done.set_exception(error)
        return done


def _processes(spec: PoolSpec, tasks: int, folder: Path) -> Executor:
    if get_start_method() not in get_all_start_methods():
        set_start_method("spawn", force=True)  # a worker of joblib has joblib's own method, which a new process would not find
    return ProcessPoolExecutor(spec.size(tasks), get_context("spawn"))


class _Remote(ThreadPoolExecutor):
    """Threads, each of which waits for one task that runs elsewhere."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots)
        self.slots = slots

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        return super().submit(self.remote, work, *given, **named)

    def remote(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Any:
        raise NotImplementedError

    def cancel(self) -> None:
        """End what is under way."""

    def close(self) -> None:
        """Tidy up after all tasks are done."""


class _Ray(_Remote):
    """Tasks of Ray. A Ray that this process has already joined is used and left as it is; otherwise one is started or joined, and left."""

    def __init__(self, spec: PoolSpec, tasks: int, folder: Path) -> None:
        import ray

        self.ray, self.mine = ray, not ray.is_initialized()
        if self.mine:
            given = {"num_cpus": spec.workers} if spec.workers and not _joins(spec.options) else {}
            try:
                ray.init(**{"log_to_driver": False, "logging_level": "warning", "include_dashboard": False, **given, **spec.options})
            except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(f"pool=ray: Ray did not start: {' '.join(str(error).split())[:300]}") from None
        super().__init__(spec.workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
        self.refs: set[Any] = set()

    def remote(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Any:
        ref = self.ray.remote(work).remote(*given, **named)
        self.refs.add(ref)
        try:
            return self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None  # what the task itself raised
        finally:
            self.refs.discard(ref)

    def cancel(self) -> None:
        for ref in list(self.refs):
            self.ray.cancel(ref, force=True)
        self.close()

    def close(self) -> None:
        if self.mine:
            self.ray.shutdown()


def _joins(options: dict[str, Any]) -> bool:
    """Whether ray.init joins a cluster instead of starting one: then it takes no num_cpus."""
    return bool(options.get("address") or os.environ.get("RAY_ADDRESS"))


class _Submitit(_Remote):
    """Jobs of Slurm; processes of this machine where there is no Slurm (options {cluster: local} asks for them)."""

    def __init__(self, spec: PoolSpec, tasks: int, folder: Path) -> None:
        import submitit

        self.folder = folder / JOBS
        settings = {"timeout_min": 60, "cpus_per_task": 1, "name": "abkt", **spec.options}
        try:
            self.jobs = submitit.AutoExecutor(self.folder, cluster=settings.pop("cluster", None))
            self.jobs.update_parameters(**settings)
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"pool=submitit: {' '.join(str(error).split())[:300]}") from None
        super().__init__(spec.size(tasks))
        self.running: set[Any] = set()

    def remote(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Any:
        job = self.jobs.submit(work, *given, **named)
        self.running.add(job)
        try:
            return job.result()
        finally:
            self.running.discard(job)

    def cancel(self) -> None:
        for job in list(self.running):
            job.cancel()

    def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _extra(kind: str) -> str:
    return {"ray": "ray", "submitit": "sweep"}[kind]
