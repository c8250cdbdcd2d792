"""What every request passes: a name for the log, the token, a line in the log, and one shape for what goes wrong."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import itertools
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipadapter.errors import InputError
from clipadapter.serve.limits import Refused
from clipadapter.serve.logs import tell
from clipadapter.serve.prediction_request import GONE, House, Visit

OPEN = ("/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json", "/")
"""Asked without a token: probes, and what is the same for every server."""
ASSETS = "/static-offline-docs/"
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
UNKNOWN = "unknown"
LOCALHOST = "localhost"


class Gate:
    """The outermost part of the app.

    Args:
        app: what it guards.
        house: of the app.
        token: that requests must bear; None for none.
    """

    def __init__(self, app: ASGIApp, house: House, token: str | None) -> None:
        self._app, self._house = app, house
        self._token = None if token is None else _hash(token)
        # Counted from a random start: asking the system for each request would wait for other threads.
        self._start, self._count_up = uuid.uuid4().hex[:16], itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        visit = Visit(given if ID.fullmatch(given) else f"{self._start}-{next(self._count_up):x}")
        scope["clipadapter"] = visit
        status = 0

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["x-request-id"] = visit.id
                if self._house.leaving:
                    answer["connection"] = "close"  # else the client's next request would meet a closed connection
                self._house.free(visit)  # however slowly the answer is fetched
            await send(message)

        try:
            if not self._knows_host(headers):
                await _misdirected(headers)(scope, receive, marked)
            elif self._token is None or _is_open(scope["path"]) or self._bears(headers):
                await self._app(scope, receive, marked)
            else:
                await _unauthorised(scope, receive, marked)
        except ClientDisconnect:
            status = GONE
        except Exception:
            status = 500
            logging.getLogger("clipadapter.serve").exception("a request failed", extra={"facts": {"id": visit.id}})
            await fault(500, "the server failed on this request; its log says how")(scope, receive, marked)
        finally:
            self._house.free(visit)
            self._count(scope, visit, status or GONE)

    def _knows_host(self, headers: Headers) -> bool:
        """Whether the header Host names this server, so that no page of another name can ask it.

        A page's own name can be made to lead to this machine (DNS rebinding), and its browser would then let it read
        the answers; the name in Host stays the page's. An address has no name that could lead elsewhere.
        """
        hosts, given = self._house.hosts, headers.get("host")
        if hosts is None or not given:
            return True
        name = host_name(given)
        return name in hosts or name == LOCALHOST or name.endswith("." + LOCALHOST) or _is_address(name)

    def _bears(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        # Hashes are of one length, so that the time of the comparison tells nothing of the token.
        return kind.lower() == "bearer" and hmac.compare_digest(_hash(token.strip()), self._token or b"")

    def _count(self, scope: Scope, visit: Visit, status: int) -> None:
        seconds = time.monotonic() - visit.began
        route = getattr(scope.get("route"), "path", UNKNOWN)
        metrics = self._house.models.metrics
        metrics.answered(route, visit.model, status, seconds)
        if visit.pictures:
            metrics.saw(visit.model, visit.pictures, visit.bad)
        if visit.why:
            metrics.refused(visit.why)
        facts: dict[str, Any] = {"id": visit.id, "method": scope["method"][:10], "route": route, "status": status}
        if visit.model:
            facts |= {"model": visit.model, "pictures": visit.pictures, "bad": visit.bad, "bytes": visit.body_bytes}
        if visit.why:
            facts["why"] = visit.why
        quiet = route in OPEN or route == "/metrics"
        tell("request", logging.DEBUG if quiet else logging.INFO, **facts, ms=round(1000 * seconds, 1))


def fault(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says why there is none."""
    return Response(to_json({"error": text}), status, dict(headers or {}), "application/json")


def add_faults(app: FastAPI) -> None:
    """Give everything that goes wrong in the app the shape of `fault`."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        request.scope["clipadapter"].why = error.why
        return fault(error.status, str(error), {} if error.retry is None else {"Retry-After": str(error.retry)})

    @app.exception_handler(InputError)
    async def wrong(request: Request, error: InputError) -> Response:
        return fault(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return fault(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        text = {404: "there is nothing at this address: /docs says what there is"}.get(error.status_code, error.detail)
        return fault(error.status_code, text, error.headers)


def host_name(host: str) -> str:
    """The name in a header Host, without port and in small letters.

    >>> host_name("Example.org:8000"), host_name("[::1]:8000"), host_name("[::1]")
    ('example.org', '::1', '::1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _misdirected(headers: Headers) -> Response:
    name = host_name(headers["host"])[:100]
    return fault(
        421, f"this server is not called {name!r}: ask for localhost, or start it with --allow-host {name[:50]}"
    )


async def _unauthorised(scope: Scope, receive: Receive, send: Send) -> None:
    text = "the token is missing or wrong: send the header 'Authorization: Bearer TOKEN'"
    await fault(401, text, {"WWW-Authenticate": "Bearer"})(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(ASSETS)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
