"""Exported models behind HTTP: a web service for pictures. PyTorch is not loaded.

A few threads load a request's pictures, which then run in batches with those of other requests. A request that can't be
answered in time is refused before its body is read. docs/serving.md describes the addresses.

Where to start: `app.py` (routes), `prediction_request.py` (the steps of a request and its body), `batching.py` (queue
and batches), `models.py` (loading and reloading), `middleware.py` (every request), `server.py` (connections and slow
clients).
"""

from clipadapter.errors import require

for _module in ("fastapi", "fastapi_offline", "uvicorn", "h11", "python_multipart", "prometheus_client"):
    require(_module, "serve", "The server")

from clipadapter.serve.app import create_app  # noqa: E402 - after the check of the packages that it needs
from clipadapter.serve.limits import Limits  # noqa: E402
from clipadapter.serve.models import ServedModels  # noqa: E402
from clipadapter.serve.server import run  # noqa: E402

__all__ = ["Limits", "ServedModels", "create_app", "run"]
