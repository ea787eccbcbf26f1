"""manifest.json: the origin of a result, and everything that is needed to make it again. It holds no host name and no personal path."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abkt.profile.fingerprint import cpu_name
from experiments.lib.compose import given_arguments
from experiments.lib.paths import ROOT
from experiments.lib.results import write_json

if TYPE_CHECKING:
    from experiments.lib.verb import VerbCall

SCHEMA_VERSION = 1
PACKAGES = ("abkt", "torch", "triton", "numpy", "transformers", "simpy", "pandas", "pyarrow", "matplotlib", "hydra-core")


def write_manifest(run: VerbCall, inputs: Iterable[Path] = ()) -> None:
    """Write the manifest of a run. inputs: the files that the run has read; each is listed with its SHA-256."""
    write_json(run.out / "manifest.json", manifest(run, inputs))


def manifest(run: VerbCall, inputs: Iterable[Path] = ()) -> dict[str, Any]:
    config = json.loads(_anonymous(json.dumps({key: value for key, value in run.config.items() if key != "out"}, default=str)))
    return {
        "schema_version": SCHEMA_VERSION,
        "verb": run.verb,
        "command": _anonymous(shlex.join(("abkt", run.verb, *given_arguments(run.arguments)))),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_state(ROOT),
        "config": config,
        "config_sha256": config_hash(config),
        "choices": run.choices,
        "seed": config.get("seed"),
        "inputs": [{"name": path.name, "bytes": path.stat().st_size, "sha256": file_hash(path)} for path in inputs],
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "host": host(),
    }


def config_hash(config: Any) -> str:
    """SHA-256 of plain values in one canonical form."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache
def code_hash() -> str:
    """SHA-256 of the source files that determine a simulation's result: abkt, sim, and experiments/lib, which builds it."""
    digest = hashlib.sha256()
    for folder in (ROOT / "abkt", ROOT / "sim", ROOT / "experiments" / "lib"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0{file_hash(path)}\n".encode())
    return digest.hexdigest()


def policy_files(config: Any) -> list[Path]:
    """The source files of the classes that a configuration names as _target_ and that are not ABKT's own."""
    modules = dict.fromkeys(target.rpartition(".")[0] for target in _targets(config))
    own = ("abkt", "sim", "experiments")
    return [path for name in modules if name and name.partition(".")[0] not in own and (path := _source(name))]


def _source(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # a parent package is missing; building the policy reports it
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _targets(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            if key == "_target_":
                yield str(value)
            else:
                yield from _targets(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _targets(value)


def git_state(root: Path) -> dict[str, Any]:
    """sha and dirty of the checkout at root; both are null outside a checkout (a wheel) or without git."""
    if not (root / ".git").exists():
        return {"sha": None, "dirty": None}
    try:
        sha = _git(root, "rev-parse", "HEAD")
        return {"sha": sha, "dirty": bool(_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"sha": None, "dirty": None}


def host() -> dict[str, Any]:
    """The kind of machine, without its name."""
    return {
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _anonymous(text: str) -> str:
    """Paths below the checkout become relative, and the home folder becomes ~."""
    return text.replace(f"{ROOT}/", "").replace(f"{Path.home()}/", "~/")
