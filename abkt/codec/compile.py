"""Builds C++ once with g++ for this machine, and loads it with ctypes, so that no Python.h is needed.

ABKT_MARCH in the environment names another processor for g++'s -march: haswell holds the code to AVX2, x86-64 to plain SSE2. The bytes are
the same; only the time differs.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger("abkt.codec")

MARCH = "ABKT_MARCH"
_OPTIMISED = ("-O3", f"-march={os.environ.get(MARCH) or 'native'}")
FLAGS = ("-std=c++17", *_OPTIMISED, "-ffp-contract=fast", "-fno-trapping-math", "-fno-math-errno", "-fPIC", "-shared")


def library(source: Path, *more_flags: str) -> ctypes.CDLL:
    """The shared library of one C++ file, whose headers lie in its own folder or in the folders beside it.

    more_flags: for g++, after FLAGS. Raises OSError or subprocess.SubprocessError where it cannot be built.
    """
    return ctypes.CDLL(str(_built(source, (*FLAGS, *more_flags))))


def library_or_none(source: Path, without: str, *more_flags: str) -> ctypes.CDLL | None:
    """As `library`; or None, with one warning in the log, if it cannot be built. without: what happens then, in words."""
    try:
        return library(source, *more_flags)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s could not be compiled (%s); %s", source.relative_to(source.parents[1]), reason_of(error), without)
        return None


def _built(source: Path, flags: tuple[str, ...]) -> Path:
    """The shared library of this source, these flags and this processor. It is built unless an earlier process has built it."""
    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("no g++ on the path")
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True, check=True).stdout
    texts = (file.read_text() for file in (source, *sorted(source.parents[1].rglob("*.h"))))
    key = hashlib.sha256("\n".join((*texts, *flags, version, _processor())).encode()).hexdigest()[:16]
    built = _cache_folder() / f"{source.stem}-{key}.so"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            fresh = Path(folder) / built.name
            subprocess.run([compiler, *flags, "-o", str(fresh), str(source)], capture_output=True, text=True, check=True)
            os.replace(fresh, built)  # in one step, since another process may build it at the same time
    return built


def reason_of(error: OSError | subprocess.SubprocessError) -> str:
    """Why `library` failed, in one line."""
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        return error.stderr.strip().splitlines()[-1]
    return str(error)


def _processor() -> str:
    """The processor that -march=native compiles for, since different machines may share a home folder."""
    info = Path("/proc/cpuinfo")
    flags = next((line for line in info.read_text().splitlines() if line.startswith(("flags", "Features"))), "") if info.exists() else ""
    return f"{platform.machine()} {flags}"


def _cache_folder() -> Path:
    """A folder that only this user writes to, because its libraries are run."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "abkt"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        pass
    else:
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="abkt-"))
