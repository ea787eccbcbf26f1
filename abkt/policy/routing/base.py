"""The input of a routing policy (a request and the nodes) and its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request before it is placed. isl, osl: number of prompt and output tokens. hash_ids: hashes of the prompt's prefix blocks, in
    order; empty if they are not known."""

    request_id: int
    isl: int
    osl: int
    arrival_s: float
    hash_ids: tuple[int, ...] = ()


class PrefillLoad(Protocol):
    """A prefill node as routing sees it: live attributes of a simulated node, or of the frontend's reservations of a real worker."""

    @property
    def queued_s(self) -> float:
        """Expected seconds of prefill (and encoding) work that was accepted and is not done."""
        ...

    @property
    def free_s(self) -> float:
        """Orders nodes as queued_s does, but stays the same while time passes: the time at which the queue will be empty. A Ranking reads
        it."""
        ...

    def prefill_s(self, isl: int, cached: int = 0) -> float:
        """Expected seconds of prefill for a prompt of isl tokens, of which the first `cached` are in the node's prefix cache."""
        ...

    def cached_tokens(self, hash_ids: tuple[int, ...]) -> int:
        """Tokens at the start of the prompt that the node's prefix cache holds; 0 without a cache. Called only with non-empty hash_ids."""
        ...


class DecodeLoad(Protocol):
    """A decode node as routing sees it. active: requests placed there and not finished. kv_used: share of its KV memory that is used or
    reserved. tpot_s: seconds of its last iteration."""

    active: int
    kv_used: float
    tpot_s: float

    def wait_s(self, isl: int) -> float:
        """Expected seconds of waiting for memory for a prompt of isl tokens."""
        ...


class RoutingPolicy(Protocol):
    """Chooses a prefill node and a decode node for each request."""

    def decide(
        self,
        now_s: float,
        request: RequestView,
        prefill: Sequence[PrefillLoad],
        decode: Sequence[DecodeLoad],
        quote_s: Callable[[int, int], float],
    ) -> tuple[int, int]:
        """Indices into `prefill` and `decode`. quote_s(p, d): expected seconds of a transfer, by the pair's own bitrate policy and link."""
        ...
