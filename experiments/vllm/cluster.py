"""Two real vLLM servers behind the proxy in the place of our own workers: `run` has the arguments and the result of LocalCluster's.

The prefill server takes one prompt at a time, as our own does. Prefix caching is off. The servers write traces, from which the records are
made (timeline.py).

Not possible here: several workers of a role, roles that change, other routing, a link that is slowed down without network namespaces.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from abkt.capacity import Capacity
from abkt.connect.vllm import trace
from abkt.net.namespaces import Namespaces
from abkt.profile.schema import Profile
from abkt.records import SLO, RequestRecord
from abkt.serve.cluster import LEAD_S, ROUND_ROBIN, STATIC, ClusterRun
from abkt.serve.errors import ClusterError
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.pacing import shaped
from experiments.vllm import server
from experiments.vllm.driver import Driver
from experiments.vllm.measure import default_python, set_reno
from experiments.vllm.server import VllmServer, connector
from experiments.vllm.spec import KIND, MOST_TOKENS, VllmSpec
from experiments.vllm.timeline import Timeline

PORT = 8100
NODES = ("p0", "d0")
SETTLE_S = 1.0  # how long the last lines of a trace may take


class VllmCluster:
    """A context manager, as LocalCluster is, with the same parameters.

    Raises
    ------
    ValueError : one line, if vLLM is not installed, or the spec asks for what these servers cannot do.
    """

    def __init__(self, spec: VllmSpec, log_dir: Path, namespaces: Namespaces | None = None, pacing: str = "userspace") -> None:
        python = default_python()
        if reason := server.why_not(python):
            raise ValueError(reason)
        if (spec.prefill, spec.decode) != (1, 1):
            raise ValueError(f"vLLM is measured with one prefill and one decode server, not {spec.prefill}P{spec.decode}D")
        self.spec, self.layout = spec, spec.layout()
        self.model = self.layout.model
        self._namespaces, self._pacing = namespaces, "tbf" if namespaces else pacing
        self._log_dir, self._resources, self._numbers = log_dir, ExitStack(), itertools.count()
        self._traces = {node: log_dir / f"vllm-{node}.jsonl" for node in NODES}
        self._read = dict.fromkeys(NODES, 0)
        self._servers = {node: self._server(node, python) for node in NODES}

    def __enter__(self) -> VllmCluster:
        try:
            if self._namespaces:
                set_reno(self._namespaces)
            for node, one in self._servers.items():
                self._traces[node].unlink(missing_ok=True)
                self._resources.callback(one.stop)
                one.start()
            for one in self._servers.values():
                one.wait()
            self._driver = self._resources.enter_context(Driver(self._prefix("d0"), self._servers["p0"].url, self._servers["d0"].url))
            self._warm()
        except RuntimeError as error:
            self._resources.close()
            raise ClusterError(str(error)) from None
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def most_tokens(self) -> int:
        """Most tokens of one request, prompt and output together."""
        return self.model.max_tokens

    def restore(self) -> None:
        """The servers keep their roles."""

    def run(
        self,
        prompts: Sequence[Prompt],
        bitrate: Mapping[str, Any],
        network: Capacity,
        slo: SLO,
        profile: Profile | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
        keep: Callable[[RequestRecord], None] = lambda record: None,
        usd_per_gb: float = 0.0,
        *,
        routing: Mapping[str, Any] = ROUND_ROBIN,
        roles: Mapping[str, Any] = STATIC,
        concurrency: int = 0,
        changes: Sequence[Any] = (),
    ) -> ClusterRun:
        """As LocalCluster.run. Records are made, and kept, at the end.

        Raises
        ------
        ValueError : for what these servers cannot do.
        ClusterError : if nothing is answered for spec.stall_timeout_s.
        """
        if concurrency or changes or roles != STATIC:
            raise ValueError("vLLM's servers take requests at their arrival times, and keep their roles")
        if self._namespaces is None and math.isfinite(min(network.bytes_per_s)):
            raise ValueError("a link between vLLM's servers is slowed down in network namespaces only: give the condition kernel=true")
        number, asked = next(self._numbers), self.spec.asked(bitrate)
        tag = {prompt.request_id: f"abkt-{number}-{prompt.request_id}" for prompt in prompts}
        ids = {name: request_id for request_id, name in tag.items()}
        started_s, answers = time.monotonic(), {}
        origin_s = started_s + LEAD_S
        requests = [{"id": tag[p.request_id], "arrival_s": p.arrival_s, "body": body_of(p, asked)} for p in prompts]
        with shaped(self._namespaces, self._pacing, network, origin_s) as facts:
            for answer in self._driver.run(origin_s, requests, self.spec.stall_timeout_s):
                answers[ids[answer["id"]]] = answer
                progress(len(answers), len(prompts))
        time.sleep(SETTLE_S)
        found = Timeline(self._lines("p0"), self._lines("d0"), answers, origin_s, tag, self.spec.max_batch)
        records, transfers = [], []
        for prompt in sorted(prompts, key=lambda p: p.request_id):
            record, transfer = found.record(prompt)
            record.cost_usd = record.wire_bytes * usd_per_gb / 1e9
            keep(record)
            records.append(record)
            transfers += [transfer] if transfer else []
        return ClusterRun(
            records,
            sorted(transfers, key=lambda t: t.start_s),
            found.iterations(),
            found.coded(),
            network={**facts, "transport": "tcp"},
            codec="abkt.connect.vllm",
            wall_s=time.monotonic() - started_s,
            overheads={"first_token": found.front_s(records)},
        )

    def _lines(self, node: str) -> list[dict[str, Any]]:
        lines, self._read[node] = trace.read(self._traces[node], self._read[node])
        return lines

    def _warm(self) -> None:
        """The first use of everything takes longer."""
        prompt = Prompt(0, 0.0, tuple(3 + 7 * k % 250 for k in range(200)), 4)
        for bitrate in ("", *KIND):
            asked = {"id": f"abkt-warm-{bitrate}", "arrival_s": 0.0, "body": body_of(prompt, bitrate)}
            for answer in self._driver.run(time.monotonic(), [asked], server.START_S):
                if "error" in answer:
                    raise RuntimeError(f"the first request failed: {answer['error']}; the servers' logs are in {self._log_dir}")
        time.sleep(SETTLE_S)
        for node in NODES:
            self._lines(node)

    def _server(self, node: str, python: Path) -> VllmServer:
        spec, net = self.spec, self._namespaces
        host = net.address(node) if net else "127.0.0.1"
        settings: dict[str, Any] = {"host": host, "deadline_s": spec.deadline_s, "timeout_s": 300.0}
        settings |= {"trace": str(self._traces[node].absolute())}
        settings |= {"bitrate": dict(spec.bitrate)} if spec.bitrate else {}
        settings |= {"key_file": spec.key_file, "encrypt": spec.encrypt} if spec.key_file else {}
        settings |= {"calibration": str(spec.calibration.absolute())} if spec.calibration else {}
        batch = 1 if node == "p0" else spec.max_batch
        arguments = ("--max-model-len", str(MOST_TOKENS), "--max-num-seqs", str(batch), "--no-enable-prefix-caching")
        own = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"} if net else {}
        transfer = connector("kv_producer" if node == "p0" else "kv_consumer", **settings)
        log = self._log_dir / f"vllm-{node}.log"
        return VllmServer(node, spec.model_folder, log, transfer, arguments, host, PORT if net else 0, self._prefix(node), python, own)

    def _prefix(self, node: str) -> tuple[str, ...]:
        return self._namespaces.command(node) if self._namespaces else ()


def body_of(prompt: Prompt, bitrate: str) -> dict[str, Any]:
    """The decode server gives all but the first of the answer's tokens, since it computes the prompt's last token itself."""
    return {
        "model": "m", "prompt": list(prompt.tokens), "max_tokens": max(1, prompt.osl - 1), "temperature": 0.0, "ignore_eos": True,
        "seed": 0, "stream": True, **({"kv_transfer_params": {"abkt_bitrate": bitrate}} if bitrate else {}),
    }  # fmt: skip
