"""What the studio's server does not answer."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FOREIGN = re.compile(r"/(file=(https?|ftp):|proxy=)", re.IGNORECASE)


class NothingForeign:
    """Refuses what Gradio would fetch from another host for whoever asks, and what pages of other hosts send.

    Args:
        app: answers all else.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or 403."""
        why = _why_not(scope) if scope["type"] == "http" else ""
        if why:
            await PlainTextResponse(why, 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _why_not(scope: Scope) -> str:
    if FOREIGN.search(scope["path"]):
        return "files of other hosts are not fetched"
    # Browsers say from where; without this, any page that a person visits could fill the disk with uploads.
    if scope["method"] not in ("GET", "HEAD", "OPTIONS") and _is_foreign(Headers(scope=scope)):
        return "pages of other hosts may not send anything"
    return ""


def _is_foreign(headers: Headers) -> bool:
    """Whether a page of another host sent a request; what is no browser says nothing of pages.

    Browsers send ``Sec-Fetch-Site`` over HTTPS and to this machine only. Elsewhere the page's host, in ``Origin``, must
    be the one that was asked. A proxy before the studio hands that name on in ``X-Forwarded-Host``, which no page can
    set without asking first.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("cross-site", "same-site")
    asked = {headers.get("host"), headers.get("x-forwarded-host")}
    return origin is not None and origin.partition("://")[2].lower() not in {host.lower() for host in asked if host}
