"""The door of the server: every request gets an id, a line in the log and a measure; strangers are sent away.

Knows: HTTP as ASGI speaks it, sizes of bodies, origins. Does not know: routes, keys, what is asked for.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from arvid.serve.house import House, check_origin
from arvid.serve.logs import LOGGER, request_id, say
from arvid.serve.refusals import OURS, Refused, body_of

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
READS = ("GET", "HEAD", "OPTIONS")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
QUIET = ("/healthz", "/readyz", "/metrics")
"""Asked every few seconds by machines; not worth a line each."""


class Front:
    """See the module."""

    def __init__(self, app: ASGIApp, house: House) -> None:
        self._app, self._house = app, house

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        mark = headers.get("x-request-id", "")
        token = request_id.set(mark if ID.fullmatch(mark) else secrets.token_hex(16))
        try:
            if scope["type"] == "websocket":
                await self._app(scope, receive, send)
            else:
                await self._answer(scope, headers, receive, send)
        finally:
            request_id.reset(token)

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        begin, sent = time.monotonic(), {"status": 0}

        async def out(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                told = MutableHeaders(scope=message)
                told["x-request-id"] = request_id.get()
                told["x-content-type-options"] = "nosniff"
                told["referrer-policy"] = "no-referrer"
                if scope["path"].startswith("/v1/"):
                    told.setdefault("cache-control", "no-store")
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, self._counted(receive), out)
        except Refused as refused:
            await refusal(refused)(scope, receive, out)
        except Exception:
            LOGGER.exception("%s %s", scope["method"], scope["path"])
            if not sent["status"]:
                told = body_of("the server failed; its log has the reason under the x-request-id", OURS)
                await JSONResponse(told, 500)(scope, receive, out)
        finally:
            self._tell(scope, sent["status"], time.monotonic() - begin)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises Refused for a foreign page that would change something, and a body that is too large."""
        house = self._house
        changes = scope["method"] not in READS
        known = headers if changes else {"host": headers.get("host", "")}
        if scope["path"] not in QUIET:
            check_origin(known, house.origins, house.hosts)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > house.limits.upload:
            raise _too_large(house.limits.upload)

    def _counted(self, receive: Receive) -> Receive:
        """A body without a length is counted as it comes."""
        left = self._house.limits.upload

        async def count() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise _too_large(self._house.limits.upload)
            return message

        return count

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route: Any = scope.get("route")
        path = str(getattr(route, "path", "none"))
        # A client may send any word as its method; only known ones become labels.
        method = scope["method"] if route and scope["method"] in METHODS else "any"
        self._house.metrics.requests.labels(method, path, str(status)).inc()
        self._house.metrics.answer.labels(path).observe(seconds)
        if scope["path"] not in QUIET:
            owner = scope.get("state", {}).get("owner", "")
            level = logging.ERROR if status >= 500 and status != 503 else logging.INFO
            say(
                "request", level, method=scope["method"], path=scope["path"], status=status,
                seconds=round(seconds, 4), owner=owner,
            )  # fmt: skip


def refusal(refused: Refused) -> JSONResponse:
    """The response that a refusal is."""
    return JSONResponse(refused.body, refused.status, headers=dict(refused.headers))


def _too_large(most: int) -> Refused:
    return Refused(f"the body is larger than {most} bytes; send less", 413, code="too_large")
