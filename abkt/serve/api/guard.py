"""Who may ask, and how much a request may send: the API key, Host and Origin where there is no key, and the body's size and time."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
from urllib.parse import urlsplit

from starlette.requests import Request

from abkt.serve.api.error import ApiError

BODY_CAP_BYTES = 4 << 20
BODY_S = 30.0  # time that a client has to send a body
CLOSE = {"Connection": "close"}  # the rest of the body is not read


def check_client(request: Request, key: str) -> None:
    """Raises ApiError if the client may not ask.

    With a key, it must send the key. Without one the server listens on loopback only, but a web page that the user has open could still
    reach it: by its own name for 127.0.0.1 (DNS rebinding), or by a request across origins. So Host and Origin must be of this host.
    """
    if key:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
        if not hmac.compare_digest(given, key.encode()):
            raise ApiError("the API key is missing or wrong; send the header Authorization: Bearer KEY", 401, code="invalid_api_key")
        return
    for name, value in (("Host", f"//{request.headers.get('host', '')}"), ("Origin", request.headers.get("origin"))):
        if value is not None and not is_loopback(value):
            said = f"{name} is {value.removeprefix('//')!r}; without a key only names of this host are served: localhost or 127.0.0.1"
            raise ApiError(said, 403)


def is_loopback(address: str) -> bool:
    """Whether the host of a URL is a name of this host."""
    try:
        host = urlsplit(address).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def read_body(request: Request) -> bytes:
    """The body. Raises ApiError above the size limit and after the time limit."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > BODY_CAP_BYTES:
                    raise ApiError(f"the request body is larger than {BODY_CAP_BYTES} bytes", 413, headers=CLOSE)
    except TimeoutError:
        raise ApiError(f"the request body did not come within {BODY_S:g} s", 408, headers=CLOSE) from None
    return bytes(body)


def parsed(body: bytes) -> object:
    """The JSON value of a body. Raises ApiError if it is no JSON, or has a text that is not Unicode."""
    try:
        value = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise ApiError("the request body is not valid JSON") from None
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ApiError("the request body has half of a surrogate pair, which is no character; send valid Unicode") from None
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(name)
