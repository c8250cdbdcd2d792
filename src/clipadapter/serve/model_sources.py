"""From the models that the command line names to the files that are served."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipadapter.backends.checksum import add_bytes, open_model
from clipadapter.backends.formats import DEFAULT_FORMAT, companion_files, export_suffixes, get_format, is_exported
from clipadapter.errors import ArtifactError, InputError, MissingExtraError, needs_training
from clipadapter.runtime.cached import cached_export, is_intact
from clipadapter.runtime.model_folder import CONFIG_FILE
from clipadapter.utils.files import explain_missing, quote_path

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
VERSION_CHARS = 12
FileStamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from."""

    name: str  # of the model, in addresses
    path: Path  # an exported file, or the folder of a saved model
    is_from_folder: bool = False  # it was found in a folder, so that the model is removed when the file is

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the model."""
        if is_exported(self.path):
            return (self.path, *companion_files(self.path))
        return self.path / CONFIG_FILE, *sorted(path for path in self.path.iterdir() if path.is_file())

    def stamp(self) -> FileStamp | None:
        """Changes when the files do; None if one is gone."""
        try:
            stats = [(path.name, path.stat()) for path in self.files]
        except OSError:
            return None
        return tuple((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats)

    def exported_file(self) -> Path:
        """The exported file. A saved model is exported once, into the cache folder."""
        return self.path if is_exported(self.path) else _export_saved_model(self.path)


def read_sources(specs: Sequence[str]) -> list[ModelSource]:
    """The sources of models, in the order of their specifications."""
    sources: dict[str, ModelSource] = {}
    for spec in specs:
        for source in find_sources(spec):
            if not MODEL_NAME.fullmatch(source.name):
                raise InputError(
                    f"{source.name!r} can't be a model's name, which has letters, digits and . _ - only: "
                    f"give it a name, as in pets={source.path}"
                )
            if source.name in sources:
                raise InputError(
                    f"{sources[source.name].path} and {source.path} are both called {source.name!r}: "
                    "give one another name, as in other=PATH"
                )
            sources[source.name] = source
    return list(sources.values())


def file_version(files: Sequence[Path]) -> str:
    """The version of a model: the start of the SHA-256 of its files."""
    digest = hashlib.sha256()
    for path in files:
        with open_model(path) as file:
            add_bytes(digest, file)
    return digest.hexdigest()[:VERSION_CHARS]


def find_sources(spec: str) -> list[ModelSource]:
    """The sources of one specification; names are not checked."""
    name, path = "", Path(spec)
    if not path.exists() and "=" in spec:
        name, _, after = spec.partition("=")
        path = Path(after)
    if not path.exists():
        wanted = "an exported file, a folder of them, or a saved model"
        raise ArtifactError(f"there is no file or folder {path}{explain_missing(path, wanted)}")
    if path.is_file() and is_exported(path):
        return [ModelSource(name or path.stem, path)]
    if path.is_file():
        raise ArtifactError(
            f"{path} is no exported model: those end in {' or '.join(export_suffixes())}; "
            "'clipadapter export' makes one"
        )
    if not path.is_dir():
        raise ArtifactError(f"{path} is neither a regular file nor a folder: give an exported file or a folder")
    if (path / CONFIG_FILE).is_file():
        return [ModelSource(name or path.resolve().name, path)]
    files = sorted(file for file in path.iterdir() if is_exported(file) and file.is_file())
    if not files:
        raise ArtifactError(f"{path} holds neither exported files nor a saved model: see 'clipadapter export'")
    if name:
        raise InputError(f"{name!r} can't name the {len(files)} files in {path}: their file names are their names")
    return [ModelSource(file.stem, file, is_from_folder=True) for file in files]


def _export_saved_model(folder: Path) -> Path:
    """The exported file of a saved model, from the cache folder or made now."""
    try:
        target = cached_export(folder, DEFAULT_FORMAT)
    except OSError as error:
        raise ArtifactError(f"{folder} no longer holds a saved model: {error.strerror}") from error
    if is_intact(target):
        return target
    try:
        from clipadapter.classifier import FewShotClassifier
        from clipadapter.export import export_model

        export_model(FewShotClassifier.load(folder), target)
    except MissingExtraError as error:
        raise _export_elsewhere(folder, str(error)) from error
    except ModuleNotFoundError as error:
        missing = needs_training(error, "exporting a saved model")
        if missing is None:
            raise
        raise _export_elsewhere(folder, str(missing)) from error
    return target


def _export_elsewhere(folder: Path, reason: str) -> MissingExtraError:
    file = f"{folder.name}{get_format(DEFAULT_FORMAT).suffix}"
    return MissingExtraError(
        f"{folder} is a saved model, which must be exported before it is served, and that is not possible here "
        f"({reason}). Where it was fitted: clipadapter export {quote_path(folder)} --out {quote_path(file)}; then "
        "serve that file"
    )
