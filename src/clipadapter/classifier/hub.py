"""Upload and download of a classifier: functions behind the methods that ``huggingface_hub.ModelHubMixin`` names.

`FewShotClassifier` has these methods but is no subclass. The mixin would write the parameters of the constructor into
``config.json``, which describes the fitted model and is written in one transaction with all other files. And the import
of the hub's client would make every command slower.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import InputError
from clipadapter.persistence import Model, fetch, push, save_model

if TYPE_CHECKING:
    from huggingface_hub import ModelCard


def resolve_pretrained(name_or_path: str | Path, **download_options: Any) -> Path:
    """Return a local folder with the model, downloaded if it is the name of a repository.

    Args:
        name_or_path: repository such as ``org/name``, or a folder.
        download_options: see `persistence.fetch`.

    Raises:
        ArtifactError: if the model can't be downloaded.
        InputError: if it is a file, or no valid name of a repository.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    if Path(name_or_path).is_file():
        raise InputError(
            f"{name_or_path} is a file: give the model's folder; what 'clipadapter export' wrote "
            "is opened by clipadapter.runtime.Predictor"
        )
    return fetch(str(name_or_path), **download_options)


def upload_model(
    model: Model, repo_id: str, *, support: bool = True, exported: Sequence[str | Path] = (), **options: Any
) -> str:
    """Save a model to a temporary folder and upload it.

    Args:
        model: fitted model.
        repo_id: repository such as ``org/name``.
        support: whether to upload the features of the shots.
        exported: exported files to upload too.
        options: see `persistence.push`.

    Returns:
        URL of the commit.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = save_model(Path(parent) / "model", model, keep_support=support)
        return push(folder, repo_id, exported=exported, **options).url


def load_card(model: Model) -> ModelCard:
    """Return the model card that saving a model writes."""
    from huggingface_hub import ModelCard

    with tempfile.TemporaryDirectory() as parent:
        return ModelCard.load(save_model(Path(parent) / "model", model) / "README.md")
