"""What a run may ask of the transport that carries its KV."""

from __future__ import annotations

from abkt.transfer.transports.registry import TRANSPORTS


def check_transport(name: str, pacing: str = "userspace") -> None:
    """Raises ValueError, one line, for one that is none, that needs what is not here, or that the kernel cannot hold back."""
    if name not in TRANSPORTS:
        raise ValueError(f"carrier is {name!r}; it must be one of {', '.join(TRANSPORTS)}")
    if name != "tcp" and pacing != "userspace":
        raise ValueError(f"carrier {name} does not go with pacing={pacing}, which is TCP's; give pacing=userspace")
    TRANSPORTS[name]()
