"""Failures of a verb: one clear line and an exit code.

ValueError and OSError mean bad input (exit code 2). RunError and ClusterError mean that a run with correct input failed (1). Ctrl-C gives
130.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from abkt.serve.errors import ClusterError

LONGEST = 800  # letters of a message
BAD_INPUT, BROKEN, INTERRUPTED = 2, 1, 128 + signal.SIGINT


class RunError(RuntimeError):
    """A run with correct input failed, because a worker died or a peer stopped answering. The text is shown to the user."""


def one_line(error: BaseException) -> str:
    """The message in one line, which loses its middle where it is longer than LONGEST."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


def exit_code(work: Callable[[], None]) -> int:
    """Do the work and return 0. A failure is reported in one line on stderr, and its exit code is returned.

    A RunError may have several lines, such as the end of a worker's log. HYDRA_FULL_ERROR=1 in the environment gives the traceback instead,
    as in every Hydra application.
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
