"""The proxy before servers that only record what they are asked."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from abkt.connect.proxy import Proxy

WHERE = {"do_remote_prefill": True, "remote_request_id": "x"}


class Recorder:
    """Stands for both servers. asked: (host, body, request id)."""

    def __init__(self, params: dict[str, Any] | None) -> None:
        self.params, self.asked = params, list[tuple[str, dict[str, Any], str]]()
        self.app = Starlette(routes=[Route("/v1/completions", self._complete, methods=["POST"])])

    async def _complete(self, request: Request) -> JSONResponse:
        body = json.loads(await request.body())
        self.asked.append((request.url.hostname or "", body, request.headers.get("x-request-id", "")))
        return JSONResponse({"kv_transfer_params": self.params if request.url.hostname == "p" else None})


def through(servers: Recorder, body: dict[str, Any]) -> dict[str, Any]:
    """What the decode server is asked for."""

    async def send() -> int:
        proxy = Proxy(["http://p"], ["http://d"])
        proxy._client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=servers.app))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=proxy.app())) as client:
            return (await client.post("http://proxy/v1/completions", json=body, headers={"X-Request-Id": "mine"})).status_code

    assert asyncio.run(send()) == 200
    (first, prefill, _), (second, decode, name) = servers.asked
    assert (first, second, name) == ("p", "d", "mine")
    assert (prefill["max_tokens"], prefill["stream"], prefill["kv_transfer_params"]["do_remote_decode"]) == (1, False, True)
    return decode


@pytest.mark.parametrize("own", [{}, {"kv_transfer_params": {"abkt_bitrate": "int8"}}, {"kv_transfer_params": {"remote_request_id": "y"}}])
def test_the_decode_server_gets_the_prefill_servers_params_and_the_clients_own(own: dict[str, Any]) -> None:
    decode = through(Recorder(WHERE), {"prompt": [1, 2], "max_tokens": 5, "stream": True, **own})
    assert (decode["max_tokens"], decode["stream"]) == (5, True)
    assert decode["kv_transfer_params"] == {**own.get("kv_transfer_params", {}), **WHERE}, "where KV lies is not the client's to say"


def test_without_params_of_the_prefill_server_the_decode_server_computes_the_prompt() -> None:
    assert "kv_transfer_params" not in through(Recorder(None), {"prompt": [1], "max_tokens": 5})
