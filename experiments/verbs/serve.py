"""`abkt serve`: serve a model on prefill and decode processes of this machine, over HTTP with OpenAI's API, until it is interrupted."""

from __future__ import annotations

import ipaddress
import signal
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from abkt.profile import schema
from abkt.ranges import bound
from abkt.records import SLO
from experiments.lib.config import BLOCK_TOKENS, MOST_BATCH, MOST_WORKERS, STRICT, BitrateConfig, ProfilePath, RoutingConfig
from experiments.lib.network import Network
from experiments.lib.verb import VerbCall, verb

if TYPE_CHECKING:
    from pydantic import ConfigDict

KEY_LETTERS = (16, 256)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """host, port: address to listen on; port 0: a free one. key_file: file with the bearer token that clients must send; null: no token,
    and only clients on this host are served. max_waiting: most requests that wait for memory; further ones are rejected. network: the
    policies' first estimate of the links, and the rate to which they are paced (gbps .inf: not paced). The other keys are as in
    ReplayConfig."""

    model_folder: Path
    host: str
    port: int
    key_file: Path | None
    prefill: int
    decode: int
    max_batch: int
    pool_tokens: int
    max_waiting: int
    bitrate: BitrateConfig
    routing: RoutingConfig
    network: Network
    slo: SLO
    profile: ProfilePath | None
    calibration: Path | None
    out: Path
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    def __post_init__(self) -> None:
        bound(self, "port", least=0, most=65_535)  # 0: a free one
        bound(self, "max_waiting", least=1)
        bound(self, "prefill", "decode", least=1, most=MOST_WORKERS)
        bound(self, "max_batch", least=1, most=MOST_BATCH)
        bound(self, "pool_tokens", least=BLOCK_TOKENS)


@verb("serve")
def main(config: ServeConfig, run: VerbCall) -> None:
    from abkt.serve import LocalCluster, LocalClusterSpec
    from abkt.serve.api import Endpoint, HttpServer, Text
    from abkt.serve.api.listening import listen
    from abkt.serve.metrics import Metrics
    from abkt.serve.service import Service
    from experiments.lib.manifest import write_manifest
    from experiments.lib.results import write_records
    from experiments.models.calibration import calibration_file

    key = read_api_key(config.key_file) if config.key_file else ""
    check_open(config.host, key)
    spec = LocalClusterSpec(
        config.model_folder, prefill=config.prefill, decode=config.decode, max_batch=config.max_batch, pool_tokens=config.pool_tokens
    )
    layout = spec.layout()  # reports a folder that holds no model before anything is written
    spec = replace(spec, calibration=calibration_file(config.calibration, config.model_folder, layout))
    text, profile = Text.of(config.model_folder), schema.load(config.profile) if config.profile else None
    listening = listen(config.host, config.port)
    config.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, _end)
    metrics = Metrics()
    with listening, LocalCluster(spec, config.out) as cluster:
        service = Service(
            lambda done: cluster.frontend(
                config.bitrate,
                config.network.capacity(),
                config.slo.ttft_s,
                done,
                time.monotonic(),
                profile,
                config.routing,
                replace_dead=True,
            ),
            config.max_waiting,
            metrics.done,
        )
        with service:
            endpoint = Endpoint(service, metrics, config.model_folder.name, text, key, cluster.most_tokens)
            host = f"[{config.host}]" if ":" in config.host else config.host
            where = f"http://{host}:{listening.getsockname()[1]}"
            print(f"serving {config.model_folder.name} on {config.prefill}P{config.decode}D at {where}; Ctrl-C ends it", flush=True)
            try:
                HttpServer(endpoint.app()).run(sockets=[listening])
            finally:
                endpoint.close()
                write_records(config.out, list(service.requests), list(service.transfers))
                write_manifest(run, [config.model_folder / "config.json"])


def read_api_key(path: Path) -> str:
    """The key in a file. Raises ValueError, one line, if every user can read the file, or a header cannot hold the key."""
    least, most = KEY_LETTERS
    try:
        mode, letters = path.stat().st_mode, path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"key file {path} cannot be read: {error}") from None
    if mode & stat.S_IRWXO:
        raise ValueError(f"key file {path} is open to every user (mode {stat.S_IMODE(mode):04o}); chmod 600 it, and change the key")
    if not (least <= len(letters) <= most and letters.isprintable() and " " not in letters):
        raise ValueError(f"key file {path} must hold {least} to {most} letters without a space; `openssl rand -hex 32` makes some")
    return letters


def check_open(host: str, key: str) -> None:
    """Raises ValueError, one line, if other hosts would be served without a key."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise ValueError(f"host {host!r} must be an IP address or localhost") from None
    if not (loopback or key):
        raise ValueError(f"host {host} is not loopback, so clients need a key: give key_file=FILE")


def _end(number: int, frame: object) -> None:
    raise SystemExit(128 + number)
