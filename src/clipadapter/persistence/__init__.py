"""A fitted model as a folder and back, and as a repository of the hub and back.

The public names are resolved at first use: who only asks what a folder holds does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipadapter.persistence._files import ArtifactConfig, check_place, read_arrays, read_config
    from clipadapter.persistence._history import History
    from clipadapter.persistence._hub import Pushed, fetch, pull, push
    from clipadapter.persistence._log import Change
    from clipadapter.persistence._parts import Model, load_model
    from clipadapter.persistence._record import record_evaluation
    from clipadapter.persistence._save import save_model

_HOME = {
    "ArtifactConfig": "_files",
    "Change": "_log",
    "History": "_history",
    "Model": "_parts",
    "Pushed": "_hub",
    "check_place": "_files",
    "fetch": "_hub",
    "load_model": "_parts",
    "pull": "_hub",
    "push": "_hub",
    "read_arrays": "_files",
    "read_config": "_files",
    "record_evaluation": "_record",
    "save_model": "_save",
}

__all__ = [
    "ArtifactConfig",
    "Change",
    "History",
    "Model",
    "Pushed",
    "check_place",
    "fetch",
    "load_model",
    "pull",
    "push",
    "read_arrays",
    "read_config",
    "record_evaluation",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clipadapter.persistence' has no attribute {name!r}")
    return getattr(importlib.import_module(f"clipadapter.persistence.{_HOME[name]}"), name)
