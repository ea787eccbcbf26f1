"""ABKT: adaptive-bitrate KV-cache transfer. Real kernels, real bytes, real processes.

Only abkt.compiled is imported here, so that `import abkt.policy` or `import sim` loads no torch. The functions of the command line, such as
`abkt.simulate`, are those of `experiments.api`. They are imported when they are first used; no other file of abkt knows that package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from abkt.compiled import use_compiled

if TYPE_CHECKING:
    from experiments.api import Answer, Run, compare, find_capacity, plan, replay, simulate, sweep

use_compiled()

__version__ = "0.1.0"
__all__ = ["Answer", "Run", "compare", "find_capacity", "plan", "replay", "simulate", "sweep"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from abkt.console import check_packages

    check_packages()
    from experiments import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
