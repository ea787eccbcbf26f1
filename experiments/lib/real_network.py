"""The network of a replay: namespaces with shaped links if they are permitted, otherwise loopback with paced sockets."""

from __future__ import annotations

import math
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abkt.net.namespaces import Namespaces
from abkt.serve.pacing import PACINGS
from experiments.lib.network import DriveConfig, NetworkConfig

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class RealNetwork:
    """pacing: tbf, socket or userspace. facts: facts for the summary. namespaces: the namespaces, if pacing is tbf. key_file: file with the
    key of this run, if addresses are not loopback."""

    pacing: str
    facts: dict[str, Any]
    namespaces: Namespaces | None = None
    key_file: str = ""


@contextmanager
def real_network(network: NetworkConfig | DriveConfig, pacing: str, seed: int, prefill: int = 0, decode: int = 1) -> Iterator[RealNetwork]:
    """Set up the network of a replay for the duration of a context.

    Parameters
    ----------
    network : rate over time, delay, loss and senders.
    pacing : tbf, socket, userspace, or auto: namespaces (tbf) if they are permitted, else socket pacing; an unlimited link without delay
        and loss is not paced.
    seed : seed of losses.
    prefill : number of prefill workers; 0: as many as the network has senders.
    decode : number of decode workers.

    Raises
    ------
    ValueError or OSError
        One line, if the network cannot be set up this way.
    """
    if pacing not in ("auto", *PACINGS):
        raise ValueError(f"pacing is {pacing}; it must be one of auto, {', '.join(PACINGS)}")
    lowest = min(network.capacity().bytes_per_s)
    needed = [f"{key}={value}" for key, value in _beyond_bandwidth(network).items()]
    why_not = ""
    if pacing == "auto":
        if math.isinf(lowest) and not needed:
            pacing = "userspace"  # an unlimited link is not paced
        else:
            why_not = Namespaces.why_not()
            pacing = "socket" if why_not else "tbf"
    elif pacing == "tbf" and (why_not := Namespaces.why_not()):
        raise ValueError(f"pacing=tbf needs network namespaces: {why_not}")
    if needed and pacing != "tbf":
        raise ValueError(f"{', '.join(needed)} needs network namespaces: {why_not or f'pacing is {pacing}'}")
    if pacing != "tbf":
        yield RealNetwork(pacing, {"why_not_namespaces": why_not} if why_not else {})
        return
    with ExitStack() as stack:
        key_file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="abkt-key-"))) / "key"
        _write_key(key_file)
        made = Namespaces(prefill or network.senders, network.delay_s, network.loss, lowest, seed, receivers=decode)
        yield RealNetwork(pacing, {}, stack.enter_context(made), str(key_file))


def _beyond_bandwidth(network: NetworkConfig | DriveConfig) -> dict[str, float]:
    plain = {"delay_s": 0.0, "loss": 0.0, "senders": 1}
    return {f"network.{key}": getattr(network, key) for key, value in plain.items() if getattr(network, key) != value}


def _write_key(path: Path) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(KEY_BYTES))
