"""Runs `ip` and `tc`, and tests whether this process may use them."""

from __future__ import annotations

import shutil
import subprocess


class NetworkError(OSError):
    """A network could not be made or changed. The message is one line."""


def run(*command: str) -> str:
    """Run a command and return its output. Raises NetworkError with the command and the last line that it printed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30.0)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NetworkError(f"`{' '.join(command)}` did not run: {error}") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise NetworkError(f"`{' '.join(command)}` failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout


def why_not(name: str) -> str:
    """The reason why namespaces with a shaped link cannot be made here, or an empty text. A namespace `name` is made to find out."""
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            return f"there is no `{tool}` (package iproute2)"
    try:
        run("ip", "netns", "add", name)
    except NetworkError as error:
        return str(error)
    try:
        run("ip", "-n", name, "link", "add", "name", "end0", "type", "veth", "peer", "name", "end1")
        run("tc", "-n", name, "qdisc", "add", "dev", "end0", "root", "tbf", "rate", "1mbit", "burst", "10kb", "limit", "10kb")
        run("ip", "netns", "exec", name, "true")
    except NetworkError as error:
        return str(error)
    finally:
        run("ip", "netns", "del", name)
    return ""
