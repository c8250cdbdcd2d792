"""The FastAPI application: its routes, its document, and what starts and stops with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, Response
from fastapi_offline import FastAPIOffline

from clipadapter import __version__
from clipadapter.serve import v1
from clipadapter.serve.body import body_schema
from clipadapter.serve.metrics import CONTENT_TYPE
from clipadapter.serve.middleware import RequestMiddleware, add_error_handlers
from clipadapter.serve.models import REFRESH_SECONDS, ServedModels
from clipadapter.serve.prediction_request import ServerState

DESCRIPTION = (
    'Predicts the classes of pictures with models that `clipadapter export` wrote. Errors are `{"error": "why"}`.'
)

PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src blob:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""The page talks to this server alone, and no other page frames it."""


def create_app(models: ServedModels, token: str | None = None, refresh_seconds: float = REFRESH_SECONDS) -> FastAPI:
    """An app that serves models; any ASGI server runs it.

    Args:
        models: that are served; they are closed when the app stops.
        token: that requests must have, except for health and documentation; None for none.
        refresh_seconds: between two checks of the models' files.

    Example::

        app = create_app(ServedModels(["pets.onnx"]))
    """
    state = ServerState(models)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(models.watch(refresh_seconds))
        yield
        state.is_stopping = True
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await asyncio.to_thread(models.close)

    # Offline: the documentation page has its own scripts. Telemetry can't be turned on by an environment variable.
    app = FastAPIOffline(
        title="clipadapter",
        version=__version__,
        description=DESCRIPTION,
        redoc_url=None,
        lifespan=lifespan,
        swagger_ui_parameters={"validatorUrl": None},
        telemetry={"auto_configure": False},
    )
    app.state.server = state
    app.include_router(v1.router)
    _add_other_routes(app)
    add_error_handlers(app)
    app.openapi = lambda: _document(app, models.limits.max_pictures, token is not None)  # type: ignore[method-assign]
    app.add_middleware(RequestMiddleware, state=state, token=token)
    return app


def _add_other_routes(app: FastAPI) -> None:
    @app.get("/v2/health/live", tags=["running"], summary="Server live")
    async def live() -> dict[str, bool]:
        """Whether the process answers."""
        return {"live": True}

    @app.get("/v2/health/ready", tags=["running"], summary="Server ready", responses={503: {}})
    async def ready(request: Request, response: Response) -> dict[str, bool]:
        """Whether requests are accepted: not while the server is stopping."""
        is_ready = not request.app.state.server.is_stopping
        response.status_code = 200 if is_ready else 503
        return {"live": True, "ready": is_ready}

    @app.get("/metrics", tags=["running"], summary="Metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Counts and times, in the text format of Prometheus."""
        return Response(request.app.state.server.models.metrics.render(), media_type=CONTENT_TYPE)

    package = files("clipadapter")
    style = (package / "rendering" / "templates" / "base.css").read_text(encoding="utf-8")
    page = (package / "serve" / "templates" / "page.html").read_text(encoding="utf-8").replace("/* base.css */", style)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})


def _document(app: FastAPI, max_pictures: int, needs_token: bool) -> dict[str, Any]:
    """The OpenAPI document. Bodies are added here: routes read them as streams, so FastAPI does not know them."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path, operations in document["paths"].items():
            for operation in operations.values():
                if path.endswith("/predict"):
                    operation["requestBody"] = body_schema(max_pictures)
                if needs_token and "/health/" not in path:
                    operation["security"] = [{"token": []}]
        if needs_token:
            document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = document
    return app.openapi_schema
