"""The app: what is asked where, and what starts and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import RedirectResponse, Response
from fastapi_offline import FastAPIOffline

from clipadapter import __version__
from clipadapter.serve import oip, v1
from clipadapter.serve.metrics import CONTENT_TYPE
from clipadapter.serve.middleware import Gate, add_faults
from clipadapter.serve.models import EVERY, Models
from clipadapter.serve.prediction_request import House

ABOUT = 'Names the classes of pictures by models that `clipadapter export` wrote. Errors are `{"error": "why"}`.'


def create_app(models: Models, token: str | None = None, every: float = EVERY) -> FastAPI:
    """An app that answers for models; any ASGI server runs it.

    Args:
        models: that are served; they are closed when the app ends.
        token: that requests must bear, but for health and documentation; None for none.
        every: seconds between two looks at the models' files.

    Example::

        app = create_app(Models(["pets.onnx"]))
    """
    house = House(models)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(models.watch(every))
        yield
        house.leaving = True
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        await asyncio.to_thread(models.close)
        house.parser.shutdown(wait=False)

    # The documentation page brings its scripts with it. Telemetry can't be turned on by a variable.
    app = FastAPIOffline(
        title="clipadapter",
        version=__version__,
        description=ABOUT,
        redoc_url=None,
        lifespan=lifespan,
        swagger_ui_parameters={"validatorUrl": None},
        telemetry={"auto_configure": False},
    )
    app.state.house = house
    app.include_router(v1.router)
    app.include_router(oip.router)
    _add_rest(app)
    add_faults(app)
    app.openapi = lambda: _document(app, models.limits.max_pictures, token is not None)  # type: ignore[method-assign]
    app.add_middleware(Gate, house=house, token=token)
    return app


def _add_rest(app: FastAPI) -> None:
    @app.get("/metrics", tags=["running"], summary="Metrics", response_class=Response)
    async def metrics(request: Request) -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(request.app.state.house.models.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("docs")


def _document(app: FastAPI, max_pictures: int, guarded: bool) -> dict[str, Any]:
    """The OpenAPI document; bodies are written here, since they are read while they come in."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path, verbs in made["paths"].items():
            for verb in verbs.values():
                if path.endswith("/predict"):
                    verb["requestBody"] = v1.body_schema(max_pictures)
                elif path.endswith("/infer"):
                    verb["requestBody"] = oip.infer_schema(max_pictures)
                if guarded and "/health/" not in path:
                    verb["security"] = [{"token": []}]
        if guarded:
            made.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        app.openapi_schema = made
    return app.openapi_schema
