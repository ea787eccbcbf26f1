"""The machine and software versions of a measurement: enough to tell two of them apart, and nothing personal."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version


def fingerprint() -> dict[str, str]:
    """CPU, cores, GPU, and the versions of Python, torch, triton, transformers and the kernel."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "cpu": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "kernel": platform.release().split("-")[0],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def cpu_name() -> str:
    """The CPU's model name, or its architecture if the name is not known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
