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
    if scope["method"] == "POST" and Headers(scope=scope).get("sec-fetch-site") in ("cross-site", "same-site"):
        return "pages of other hosts may not send anything"
    return ""
