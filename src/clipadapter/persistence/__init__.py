"""A fitted model as a folder and back, and as a repository of the hub and back.

The public names are resolved at first use: who only asks what a folder holds does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipadapter.persistence.format import ModelConfig, check_target_folder, read_arrays, read_config
    from clipadapter.persistence.history import History
    from clipadapter.persistence.history_files import Change
    from clipadapter.persistence.hub import PushResult, fetch, pull, push
    from clipadapter.persistence.model import Model, load_model
    from clipadapter.persistence.save import record_evaluation, save_model

_HOME = {
    "ModelConfig": "format",
    "Change": "history_files",
    "History": "history",
    "Model": "model",
    "PushResult": "hub",
    "check_target_folder": "format",
    "fetch": "hub",
    "load_model": "model",
    "pull": "hub",
    "push": "hub",
    "read_arrays": "format",
    "read_config": "format",
    "record_evaluation": "save",
    "save_model": "save",
}

__all__ = [
    "ModelConfig",
    "Change",
    "History",
    "Model",
    "PushResult",
    "check_target_folder",
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
