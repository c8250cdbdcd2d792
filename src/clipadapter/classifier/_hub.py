"""A classifier on the Hugging Face hub."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin
from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.persistence import Model, fetch, push, save_model


class OnHub(ModelHubMixin, ABC):
    """Part of `FewShotClassifier`: the face of ``huggingface_hub.ModelHubMixin`` over a model's own folder.

    The mixin would write the constructor's parameters into ``config.json``, and hand those of the file to the
    constructor; ours describes the fitted model, is part of what is checked, and is written in one go with all other
    files. So the mixin's methods are ours, by the same names.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Without the mixin's record of the parameters, which the object has as attributes."""
        return object.__new__(cls)

    @abstractmethod
    def save(self, folder: str | Path, *, support: bool = True) -> Path:
        """Write the fitted model to a folder."""

    @abstractmethod
    def _model(self) -> Model:
        """What is saved."""

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path, **params: Any) -> Self:
        """The model in a folder."""

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Write the fitted model to a folder, as `save` does, and put it onto the hub if asked to.

        Args:
            save_directory: where to.
            repo_id: name on the hub; the folder's, if not given.
            push_to_hub: also put it onto the hub.
            options: as of `push_to_hub`.

        Returns:
            URL of the commit, if it was put onto the hub.

        Raises:
            ArtifactError: if the folder can't be written, or the hub can't be reached or refuses.
            InputError: before `fit`.
        """
        folder = self.save(save_directory)
        return push(folder, repo_id or folder.resolve().name, **options).url if push_to_hub else None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **params: Any,
    ) -> Self:
        """The model of a repository on the hub, or in a folder.

        Args:
            pretrained_model_name_or_path: such as ``org/name``; or a folder.
            force_download: fetch what is on this machine already, too.
            token: instead of the one that the hub's client has.
            cache_dir: instead of the client's cache folder.
            local_files_only: ask no network.
            revision: branch, tag or commit; "main" if not given.
            params: as of `load`, such as ``device``, ``uncertainty``, or ``encoder`` where its weights were moved.

        Raises:
            ArtifactError: if it can't be had, is altered or of a later format.
            FingerprintError: if the encoder is not the one the model was fitted with.
            InputError: if it is neither a folder nor a name on the hub.
        """
        if Path(pretrained_model_name_or_path).is_dir():
            return cls.load(pretrained_model_name_or_path, **params)
        if Path(pretrained_model_name_or_path).is_file():
            raise InputError(
                f"{pretrained_model_name_or_path} is a file: give the model's folder; what 'clipadapter export' wrote "
                "is opened by clipadapter.runtime.Predictor"
            )
        folder = fetch(
            str(pretrained_model_name_or_path),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return cls.load(folder, **params)

    def push_to_hub(
        self, repo_id: str, *, exported: Sequence[str | Path] = (), support: bool = True, **options: Any
    ) -> str:
        """Put the fitted model onto the hub, in one commit; the repository is made if there is none.

        Args:
            repo_id: such as ``org/name``.
            exported: files that `clipadapter export` wrote, to lie beside it.
            support: with the shots' features; see `save`.
            options: ``private``, ``token``, ``branch``, ``create_pr``, ``commit_message``; see `artifact.push`.

        Returns:
            URL of the commit.

        Raises:
            ArtifactError: if the hub can't be reached or refuses.
            InputError: before `fit`, or if an exported file is missing or is none.
        """
        with tempfile.TemporaryDirectory() as place:
            folder = save_model(Path(place) / "model", self._model(), keep_support=support)
            return push(folder, repo_id, exported=exported, **options).url

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card that `save` writes; the mixin's arguments are not looked at."""
        with tempfile.TemporaryDirectory() as place:
            return ModelCard.load(save_model(Path(place) / "model", self._model()) / "README.md")
