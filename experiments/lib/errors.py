"""How a verb fails: one clear line, and an exit code that says whose turn it is.

ValueError or OSError: what was asked cannot be done (exit code 2). RunError, ClusterError: it was under way and broke (1). Ctrl-C: 130.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from abkt.serve.errors import ClusterError

BAD_INPUT, BROKEN, INTERRUPTED = 2, 1, 128 + signal.SIGINT


class RunError(RuntimeError):
    """A run that broke although what was asked was right: a worker died, a peer fell silent. Its text is what the user reads."""


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def exit_code(work: Callable[[], None]) -> int:
    """Do the work; 0, or the exit code of its failure, told in one line on stderr. A RunError may have several (a worker's last log).

    HYDRA_FULL_ERROR=1 in the environment gives the traceback instead, as in every Hydra application.
    """
    try:
        work()
    except (ValueError, OSError, RunError, ClusterError) as error:
        if os.environ.get("HYDRA_FULL_ERROR"):
            raise
        broken = isinstance(error, RunError | ClusterError)
        print(f"abkt: {str(error) if broken else one_line(error)}", file=sys.stderr)
        return BROKEN if broken else BAD_INPUT
    except KeyboardInterrupt:
        print("abkt: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0
