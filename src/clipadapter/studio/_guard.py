"""What the studio's server does not answer."""

from __future__ import annotations

import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FOREIGN = re.compile(r"/(file=(https?|ftp):|proxy=)", re.IGNORECASE)


class NoForeignFiles:
    """Refuses what Gradio would fetch from another host for whoever asks.

    Args:
        app: answers all else.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or 403."""
        if scope["type"] == "http" and FOREIGN.search(scope["path"]):
            await PlainTextResponse("files of other hosts are not fetched", 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)
