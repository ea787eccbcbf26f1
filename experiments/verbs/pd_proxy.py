"""`abkt pd-proxy`: an HTTP proxy before prefill and decode servers of vLLM, until it is interrupted."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.ranges import bound
from experiments.lib.config import STRICT
from experiments.lib.verb import VerbCall, verb

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True, slots=True)
class PdProxyConfig:
    """prefill, decode: base URLs of the servers. host, port: where the proxy listens. allow_open: also where other hosts reach it."""

    prefill: list[str]
    decode: list[str]
    host: str
    port: int
    allow_open: bool
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "port", least=0, most=65_535)
        try:
            loopback = self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            raise ValueError(f"host {self.host!r} must be an IP address or localhost") from None
        if not (loopback or self.allow_open):
            raise ValueError(f"host {self.host} is not loopback, and the proxy asks no key: give allow_open=true to do it all the same")


@verb("pd-proxy")
def main(config: PdProxyConfig, run: VerbCall) -> None:
    from abkt.connect.proxy import Proxy
    from abkt.serve.api import HttpServer
    from abkt.serve.api.listening import listen

    app = Proxy(config.prefill, config.decode).app()
    with listen(config.host, config.port) as listening:
        host = f"[{config.host}]" if ":" in config.host else config.host
        where = f"http://{host}:{listening.getsockname()[1]}"
        print(f"proxy of {len(config.prefill)} prefill and {len(config.decode)} decode servers at {where}; Ctrl-C ends it", flush=True)
        HttpServer(app).run(sockets=[listening])
