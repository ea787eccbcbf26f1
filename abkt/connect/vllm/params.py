"""kv_transfer_params: where the KV of a prefilled request lies. The prefill response holds them, and the decode request brings them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from abkt.connect.vllm.settings import BITRATES, EXACT


@dataclass(frozen=True, slots=True)
class RemoteKV:
    """The KV of one prefilled request.

    request_id : the prefill server's name of the request.
    addresses : where the prefill server's workers listen, one for each TP rank.
    fingerprint : what both servers must have in common (handshake.py).
    tokens : tokens of the prompt.
    lossy : whether the KV may travel in less than full precision.
    bitrate : what the decode request asks for in place of the prefill server's own bitrate (`abkt_bitrate`); empty: nothing.
    prefix : the decode request's prompt goes on after the prefilled one (`abkt_prefix`), and the rest is computed here.
    """

    request_id: str
    addresses: tuple[str, ...]
    fingerprint: str
    tokens: int
    lossy: bool
    bitrate: str = ""
    prefix: bool = False

    def params(self) -> dict[str, Any]:
        """As the response of the prefill server."""
        host, _, port = self.addresses[0].rpartition(":")
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_request_id": self.request_id,
            "remote_host": host,
            "remote_port": int(port),
            "remote_num_tokens": self.tokens,
            "tp_size": len(self.addresses),
            "abkt_addresses": list(self.addresses),
            "abkt_fingerprint": self.fingerprint,
            "abkt_lossy": self.lossy,
        }

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> RemoteKV:
        """Raises ValueError, one line, for params that a connector of another kind, or none, has written."""
        kinds = {
            "remote_request_id": str, "abkt_addresses": list, "abkt_fingerprint": str, "remote_num_tokens": int, "abkt_lossy": bool,
        }  # fmt: skip
        for key, kind in kinds.items():
            if not isinstance(params.get(key), kind):
                raise ValueError(f"kv_transfer_params lack {key}: the prefill server does not run AbktConnector, or the proxy dropped it")
        addresses = params["abkt_addresses"]
        if not addresses or not all(isinstance(address, str) for address in addresses):
            raise ValueError("kv_transfer_params: abkt_addresses must be host:port of each worker")
        bitrate, prefix = params.get("abkt_bitrate", ""), params.get("abkt_prefix", False)
        if bitrate not in ("", *BITRATES) or not isinstance(prefix, bool):
            raise ValueError(f"kv_transfer_params: abkt_bitrate must be one of {', '.join(BITRATES)}, and abkt_prefix true or false")
        lossy = params["abkt_lossy"] if not bitrate else bitrate not in EXACT
        tokens, print_ = params["remote_num_tokens"], params["abkt_fingerprint"]
        return cls(params["remote_request_id"], tuple(addresses), print_, tokens, lossy, bitrate, prefix)
