"""What is named on the command line, as files to serve."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipadapter.cache import default_cache_dir
from clipadapter.errors import ArtifactError, InputError, MissingExtraError, needs_training
from clipadapter.files import EXPORT_SUFFIXES, ONNX_SUFFIX, OPENVINO_SUFFIX, OPENVINO_WEIGHTS_SUFFIX, is_exported
from clipadapter.runtime._checksum import add_bytes, check_file, open_model

CONFIG = "config.json"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Args:
        name: what it is asked for by.
        path: an exported file, or the folder of a saved model.
        found: it was found in a folder, so that it goes when its file does.
    """

    name: str
    path: Path
    found: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it is read from."""
        if self.path.suffix.lower() == OPENVINO_SUFFIX:
            return self.path, self.path.with_suffix(OPENVINO_WEIGHTS_SUFFIX)
        if self.path.suffix.lower() == ONNX_SUFFIX:
            return (self.path,)
        return self.path / CONFIG, *sorted(path for path in self.path.iterdir() if path.is_file())

    def stamp(self) -> Stamp | None:
        """What changes when the files do; None if one is gone."""
        try:
            stats = [(path.name, path.stat()) for path in self.files]
        except OSError:
            return None
        return tuple((name, stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats)

    def exported(self) -> Path:
        """The exported file; that of a saved model is made, once, in the cache folder.

        Raises:
            ArtifactError: if there is none.
            MissingExtraError: if it would have to be made here, and can't.
        """
        return self.path if is_exported(self.path) else _export(self.path)


def read_sources(texts: Sequence[str]) -> list[Source]:
    """Models by what was given for them, in that order; folders are looked through.

    Args:
        texts: each an exported file, a folder of them, the folder of a saved model, or ``name=path`` of one of the
            first and last.

    Raises:
        InputError: if a name can't be in an address, is there twice, or is given to a folder of several.
        ArtifactError: if there is nothing to serve at a path.
    """
    found: dict[str, Source] = {}
    for text in texts:
        for source in sources_of(text):
            if not NAME.fullmatch(source.name):
                raise InputError(
                    f"{source.name!r} can't be a model's name, which is letters, digits and . _ -: "
                    f"give it one, as in pets={source.path}"
                )
            if source.name in found:
                raise InputError(
                    f"{found[source.name].path} and {source.path} are both called {source.name!r}: "
                    "give one another name, as in other=PATH"
                )
            found[source.name] = source
    return list(found.values())


def digest(files: Sequence[Path]) -> str:
    """What tells one version of a model from another: the start of the SHA-256 of its files.

    Raises:
        ArtifactError: if one can't be read, or is no regular file.
    """
    total = hashlib.sha256()
    for path in files:
        with open_model(path) as file:
            add_bytes(total, file)
    return total.hexdigest()[:12]


def sources_of(text: str) -> list[Source]:
    """What one text stands for; its names are not checked.

    Raises:
        InputError: if a name is given to a folder of several.
        ArtifactError: if there is nothing to serve.
    """
    name, path = "", Path(text)
    if not path.exists() and "=" in text:
        name, _, rest = text.partition("=")
        path = Path(rest)
    if not path.exists():
        raise ArtifactError(f"there is no {path}: give an exported file, a folder of them, or a saved model")
    if path.is_file() and is_exported(path):
        return [Source(name or path.stem, path)]
    if path.is_file():
        raise ArtifactError(
            f"{path} is no exported model: those end in {' or '.join(EXPORT_SUFFIXES.values())}; "
            "'clipadapter export' makes one"
        )
    if not path.is_dir():
        raise ArtifactError(f"{path} is neither a regular file nor a folder: give an exported file or a folder")
    if (path / CONFIG).is_file():
        return [Source(name or path.resolve().name, path)]
    files = sorted(file for file in path.iterdir() if is_exported(file) and file.is_file())
    if not files:
        raise ArtifactError(f"{path} holds neither exported files nor a saved model: see 'clipadapter export'")
    if name:
        raise InputError(f"{name!r} can't name the {len(files)} files in {path}: they go by their own names")
    return [Source(file.stem, file, found=True) for file in files]


def _export(folder: Path) -> Path:
    """The file of a saved model, from the cache folder or made now."""
    try:
        key = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()[:32]
    except OSError as error:
        raise ArtifactError(f"{folder} holds no saved model any more: {error.strerror}") from error
    target = default_cache_dir() / "served" / f"{key}.onnx"
    if _is_sound(target):
        return target
    try:
        from clipadapter.classifier import FewShotClassifier
        from clipadapter.export import export_model

        export_model(FewShotClassifier.load(folder), target)
    except MissingExtraError as error:
        raise _elsewhere(folder, str(error)) from error
    except ModuleNotFoundError as error:
        missing = needs_training(error, "exporting a saved model")
        if missing is None:
            raise
        raise _elsewhere(folder, str(missing)) from error
    return target


def _is_sound(target: Path) -> bool:
    """Whether a file in the cache is there and was not altered; if not, it is made again."""
    try:
        check_file(target)
    except ArtifactError:
        return False
    return True


def _elsewhere(folder: Path, reason: str) -> MissingExtraError:
    return MissingExtraError(
        f"{folder} is a saved model, which must be exported before it is served, and that can't be done here "
        f"({reason}). Where it was fitted: clipadapter export {folder} --out {folder.name}.onnx; then serve that file"
    )
