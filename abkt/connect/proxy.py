"""An HTTP proxy before prefill and decode servers of vLLM: each prompt goes to a prefill server first, and then, with the params of its
response, to a decode server. Any connector that hands off by kv_transfer_params works behind it.

If no prefill server can answer, the decode server gets the request without params and computes the prompt itself.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

COMPLETIONS = ("/v1/completions", "/v1/chat/completions")
BODY_CAP = 64 << 20
CONNECT_S = 5.0
HANDED_ON = ("authorization", "x-request-id")
NOT_HANDED_BACK = {"content-length", "transfer-encoding", "connection", "keep-alive", "date", "server"}

log = logging.getLogger(__name__)


class ClientGone(Exception):
    """The client has closed its connection."""


class Proxy:
    """Takes prefill and decode servers in turn.

    Parameters
    ----------
    prefill, decode : base URLs, such as http://127.0.0.1:8100.

    Raises
    ------
    ValueError : one line, if there is no server of a kind, or a URL is none.
    """

    def __init__(self, prefill: Sequence[str], decode: Sequence[str]) -> None:
        for kind, urls in (("prefill", prefill), ("decode", decode)):
            if not urls:
                raise ValueError(f"the proxy needs a {kind} server: give {kind}=[http://HOST:PORT]")
            for url in urls:
                if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
                    raise ValueError(f"{kind} server {url!r} is not a URL such as http://127.0.0.1:8100")
        self._prefill, self._decode = itertools.cycle(prefill), itertools.cycle(decode)
        limits = httpx2.Limits(max_connections=None)
        self._client = httpx2.AsyncClient(timeout=httpx2.Timeout(None, connect=CONNECT_S), limits=limits)

    def app(self) -> Starlette:
        posts = [Route(path, self._complete, methods=["POST"]) for path in COMPLETIONS]
        return Starlette(routes=[*posts, Route("/{path:path}", self._pass_on, methods=["GET"])])

    async def _complete(self, request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except ValueError:
            return _error("the body is not JSON", 400)
        if not isinstance(body, dict):
            return _error("the body is not a JSON object", 400)
        headers = {name: request.headers[name] for name in HANDED_ON if name in request.headers}
        try:
            answer = await self._until_gone(request, self._prefilled(request.url.path, body, headers))
            if isinstance(answer, Response):
                return answer
            own = body.get("kv_transfer_params")  # what the client wants, such as abkt_bitrate, goes on to the decode server
            asked = {**body, "kv_transfer_params": {**own, **answer} if isinstance(own, dict) else answer} if answer else body
            sent = self._client.build_request("POST", next(self._decode) + request.url.path, json=asked, headers=headers)
            response = await self._until_gone(request, self._client.send(sent, stream=True))
        except ClientGone:
            return Response(status_code=499)
        except httpx2.HTTPError as error:
            return _error(f"the decode server cannot be reached: {error}", 502)
        back = {name: value for name, value in response.headers.items() if name.lower() not in NOT_HANDED_BACK}
        return StreamingResponse(_parts(response), response.status_code, back)

    async def _prefilled(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Response | dict[str, Any] | None:
        """The params of a prefilled prompt; None if the decode server has to compute it; an error of the client's as it came."""
        asked = {key: value for key, value in body.items() if key not in ("stream", "stream_options", "min_tokens")}
        asked |= {"max_tokens": 1, "stream": False, "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}}
        if "max_completion_tokens" in body:
            asked["max_completion_tokens"] = 1
        url = next(self._prefill)
        try:
            response = await self._client.post(url + path, json=asked, headers=headers)
        except httpx2.HTTPError as error:
            log.warning("prefill server %s: %s; the decode server computes the prompt", url, error)
            return None
        if 400 <= response.status_code < 500:
            return Response(response.content, response.status_code, media_type=response.headers.get("content-type"))
        params = response.json().get("kv_transfer_params") if response.status_code == 200 else None
        if not params:
            log.warning("prefill server %s gave status %d and no kv_transfer_params", url, response.status_code)
        return params if isinstance(params, dict) else None

    async def _until_gone(self, request: Request, work: Any) -> Any:
        """The result of an awaitable. Raises ClientGone, and cancels it, if the client leaves first."""
        result: list[Any] = []

        async def watch() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        async def do() -> None:
            result.append(await work)
            group.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(watch)
                group.start_soon(do)
        except* httpx2.HTTPError as errors:
            raise errors.exceptions[0] from None
        if not result:
            raise ClientGone
        return result[0]

    async def _pass_on(self, request: Request) -> Response:
        try:
            response = await self._client.get(next(self._decode) + request.url.path)
        except httpx2.HTTPError as error:
            return _error(f"the decode server cannot be reached: {error}", 502)
        return Response(response.content, response.status_code, media_type=response.headers.get("content-type"))


async def _parts(response: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for part in response.aiter_raw():
            yield part
    finally:
        await response.aclose()


def _error(message: str, status: int) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error" if status < 500 else "server_error"}}, status)
