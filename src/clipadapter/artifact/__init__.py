"""A fitted model as a folder and back."""

from clipadapter.artifact._files import ArtifactConfig, read_arrays, read_config, write_artifact
from clipadapter.artifact._parts import Model, load_model, save_model

__all__ = ["ArtifactConfig", "Model", "load_model", "read_arrays", "read_config", "save_model", "write_artifact"]
