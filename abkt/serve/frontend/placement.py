"""The placement of a request: the pair of workers that routing chooses for it."""

from __future__ import annotations

from abkt.policy.routing.base import RequestView, RoutingPolicy
from abkt.serve.frontend.prompt import Prompt
from abkt.serve.frontend.reservations import DecodeReservations, PrefillReservations, Reservations
from abkt.serve.frontend.workers import Workers


class Placement:
    """Asks a routing policy for a pair among the workers that are serving and have memory for the request."""

    def __init__(self, routing: RoutingPolicy, workers: Workers, reservations: Reservations) -> None:
        self._routing, self._workers, self._reservations = routing, workers, reservations

    def choose(self, prompt: Prompt, now_s: float) -> tuple[str, str] | None:
        """(prefill worker, decode worker); None while no pair has room.

        A pair with a recent failed transfer is avoided, unless it is the only one left.
        """
        reservations, workers = self._reservations, self._workers
        tokens = prompt.isl + prompt.osl
        sources: list[PrefillReservations] = [reservations.prefill[name] for name in workers.serving("prefill")]
        targets: list[DecodeReservations] = [
            reservations.decode[name] for name in workers.serving("decode") if reservations.has_room(name, tokens)
        ]
        if not sources or not targets:
            return None
        view = RequestView(prompt.request_id, prompt.isl, prompt.osl, prompt.arrival_s)

        def quote_s(p: int, d: int) -> float:
            return reservations.quote_s(sources[p].name, targets[d].name, prompt.isl, prompt.arrival_s, now_s)

        while True:
            p, d = self._routing.decide(now_s, view, sources, targets, quote_s)
            source, target = sources[p].name, targets[d].name
            if not reservations.suspect(source, target, now_s) or len(sources) + len(targets) == 2:
                return source, target
            if len(targets) > 1:
                targets.pop(d)
            else:
                sources.pop(p)
