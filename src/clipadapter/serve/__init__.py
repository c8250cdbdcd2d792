"""Exported models behind HTTP: a web service for pictures, and the Open Inference Protocol; no torch is loaded.

A request's pictures are unpacked by a few threads and answered together with those of other requests; what would not
be answered in time is refused before its body is read. docs/serving.md says how to ask.
"""

from clipadapter.errors import require

for _module in ("fastapi", "fastapi_offline", "uvicorn", "h11", "python_multipart", "prometheus_client"):
    require(_module, "serve", "The server")

from clipadapter.serve.app import create_app  # noqa: E402 - what it needs is asked for first
from clipadapter.serve.limits import Limits  # noqa: E402
from clipadapter.serve.models import Models  # noqa: E402
from clipadapter.serve.server import run  # noqa: E402

__all__ = ["Limits", "Models", "create_app", "run"]
