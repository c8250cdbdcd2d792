"""A fitted model as a folder and back, and as a repository of the hub and back."""

from clipadapter.artifact._files import ArtifactConfig, read_arrays, read_config
from clipadapter.artifact._history import History
from clipadapter.artifact._hub import Pushed, fetch, pull, push
from clipadapter.artifact._log import Change
from clipadapter.artifact._parts import Model, load_model
from clipadapter.artifact._record import record_evaluation
from clipadapter.artifact._save import save_model

__all__ = [
    "ArtifactConfig",
    "Change",
    "History",
    "Model",
    "Pushed",
    "fetch",
    "load_model",
    "pull",
    "push",
    "read_arrays",
    "read_config",
    "record_evaluation",
    "save_model",
]
