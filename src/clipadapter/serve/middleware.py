"""What happens to every request: its id, the checks of Host and token, its log line, and one shape of errors."""

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

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipadapter.errors import InputError
from clipadapter.serve.limits import SERVER_FAILED, RequestRefused
from clipadapter.serve.logs import log_event
from clipadapter.serve.prediction_request import RequestContext, ServerState

CLIENT_CLOSED_REQUEST = 499
"""Status in logs and metrics of a request whose client disconnected, as nginx has it; it is never sent."""
PUBLIC_PATHS = ("/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json", "/")
"""Answered without a token: probes, and pages that are the same for every server."""
ASSETS_PREFIX = "/static-offline-docs/"
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
LOCALHOST = "localhost"


class RequestMiddleware:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, state: ServerState, token: str | None) -> None:
        self._app, self._state = app, state
        self._token_hash = None if token is None else _hash(token)
        # Counted from a random start: a random number for each request would be a system call that waits for the lock.
        self._id_prefix, self._id_counter = uuid.uuid4().hex[:16], itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        is_valid_id = REQUEST_ID.fullmatch(client_id)
        context = RequestContext(client_id if is_valid_id else f"{self._id_prefix}-{next(self._id_counter):x}")
        scope["clipadapter"] = context
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                response_headers = MutableHeaders(scope=message)
                response_headers["x-request-id"] = context.id
                if self._state.is_stopping:
                    response_headers["connection"] = "close"  # else the client's next request meets a closed connection
            await send(message)

        try:
            await (self._find_refusal(scope["path"], headers) or self._app)(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
        except Exception:
            status = 500
            logging.getLogger("clipadapter.serve").exception("a request failed", extra={"facts": {"id": context.id}})
            await error_response(500, SERVER_FAILED)(scope, receive, send_with_headers)
        finally:
            self._record(scope, context, status or CLIENT_CLOSED_REQUEST)

    def _find_refusal(self, path: str, headers: Headers) -> Response | None:
        """The answer to a request whose header Host names another server, or that lacks the token; else None.

        DNS rebinding: the owner of a web page can let its name lead to this machine, and its visitor's browser then
        lets the page read the answers. The header Host still has the page's name. An address is safe: no name leads
        elsewhere.
        """
        allowed, host = self._state.allowed_hosts, headers.get("host")
        if allowed is not None and host:
            name = host_name(host)
            if not (name in allowed or name == LOCALHOST or name.endswith("." + LOCALHOST) or is_address(name)):
                name = name[:100]
                start = f"start it with --allow-host {name[:50]}"
                return error_response(421, f"this server is not called {name!r}: use the name localhost, or {start}")
        if self._token_hash is None or path in PUBLIC_PATHS or path.startswith(ASSETS_PREFIX):
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Hashes have one length, so that the time of the comparison says nothing about the token.
        if scheme.lower() == "bearer" and hmac.compare_digest(_hash(token.strip()), self._token_hash):
            return None
        text = "the token is missing or wrong: send the header 'Authorization: Bearer TOKEN'"
        return error_response(401, text, {"WWW-Authenticate": "Bearer"})

    def _record(self, scope: Scope, context: RequestContext, status: int) -> None:
        """Count and log an answered request."""
        seconds = time.monotonic() - context.started_at
        route = getattr(scope.get("route"), "path", "unknown")
        metrics, model = self._state.models.metrics, context.model
        metrics.requests.labels(route, model, str(status)).inc()
        metrics.seconds.labels(route, model).observe(seconds)
        if context.pictures:
            metrics.pictures.labels(model).inc(context.pictures)
            metrics.unreadable.labels(model).inc(context.unreadable)
        facts: dict[str, Any] = {"id": context.id, "method": scope["method"][:10], "route": route, "status": status}
        if model:
            facts |= {"model": model, "pictures": context.pictures, "bad": context.unreadable}
            facts["bytes"] = context.body_bytes
        if context.refusal_reason:
            metrics.refused.labels(context.refusal_reason).inc()
            facts["why"] = context.refusal_reason
        is_probe = route in PUBLIC_PATHS or route == "/metrics"
        log_event("request", logging.DEBUG if is_probe else logging.INFO, **facts, ms=round(1000 * seconds, 1))


def error_response(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error, in the one shape that all have."""
    return Response(to_json({"error": text}), status, dict(headers or {}), "application/json")


async def answer_error(request: Request, error: Exception) -> Response:
    """The answer to a request that raised an error."""
    if isinstance(error, RequestRefused):
        request.scope["clipadapter"].refusal_reason = error.reason
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return error_response(error.status, str(error), headers)
    if isinstance(error, HTTPException):
        text = "there is nothing at this address: see /docs" if error.status_code == 404 else error.detail
        return error_response(error.status_code, text, error.headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return error_response(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
    return error_response(422, str(error))


ERROR_HANDLERS = dict.fromkeys([RequestRefused, HTTPException, RequestValidationError, InputError], answer_error)


def host_name(host: str) -> str:
    """The name in a header Host, without port and in small letters.

    >>> host_name("Example.org:8000"), host_name("[::1]:8000"), host_name("[::1]")
    ('example.org', '::1', '::1')
    """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def is_address(name: str) -> bool:
    """Whether a name is an IP address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
