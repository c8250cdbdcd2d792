"""Every deliberate exception of the package.

Tree::

    ClipAdapterError
    ├── InputError              a value that was given is wrong (also a ValueError)
    │   ├── UnknownNameError    no head, encoder, template ... has this name; says which come close
    │   ├── TooFewShotsError    nothing can be learned from so few shots
    │   └── DataError           a folder, manifest or list of pictures can't be used as it is
    │       ├── LayoutError     folders are taken for classes, but the classes are one level deeper
    │       └── ImageError      one picture can't be read; `reason` says why
    ├── MissingExtraError       an optional part is not installed; names the line that installs it (also an ImportError)
    ├── EncoderUnavailableError the weights are neither on this machine nor to be had
    ├── StoreError              the feature store can't be opened or written
    └── ArtifactError           a saved model is missing, altered, or can't be written
        └── FingerprintError    the encoder at hand is not the one the model was fitted with
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

TRAIN = frozenset(
    ("torch", "torchvision", "open_clip", "timm", "sklearn", "scipy", "safetensors", "pydantic", "huggingface_hub")
    + ("matplotlib", "fontTools", "jinja2", "filelock", "threadpoolctl", "tomli")
)
"""Modules of the extra ``train``: all parts but those that answer with an exported model import them freely."""
MAX_NAMED_FILES = 5  # files that a warning names; it counts the others


class ClipAdapterError(Exception):
    """Base of all errors raised on purpose: its text is meant to be read by the person at the keyboard."""


class InputError(ClipAdapterError, ValueError):
    """A value that was given is wrong."""


class UnknownNameError(InputError):
    """No member of a registry has this name."""


class TooFewShotsError(InputError):
    """Nothing can be learned from so few shots."""


class DataError(InputError):
    """A folder, manifest or list of pictures can't be used as it is."""


class LayoutError(DataError):
    """Folders are taken for classes, but the classes are one level deeper.

    Args:
        text: the folders, and what they hold.
        source: the folder that was given.
        folders: the folders that may be meant, the likeliest first; possibly none.
    """

    def __init__(self, text: str, source: Path, folders: Sequence[Path] = ()) -> None:
        super().__init__(f"{text}: give the folder that has the classes, '{folders[0]}'" if folders else text)
        self.text = text
        self.source = source
        self.folders = tuple(folders)


class ImageError(DataError):
    """One picture can't be read.

    Args:
        source: what was read, as the user would name it.
        reason: why it can't be used, a short phrase such as ``file is truncated``.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason

    def without_traceback(self) -> ImageError:
        """The error to store: the frames of tracebacks, its own and its cause's, hold the pixels of the picture."""
        return ImageError(self.source, self.reason)


class DataWarning(UserWarning):
    """Files were read or left out in a way that a user may not expect, such as an animation of which one frame is read.

    Args:
        note: what the files have in common.
        names: of the files.

    >>> str(DataWarning("links in a loop are left out", ("a", "b")))
    'links in a loop are left out: 2 (a, b)'
    """

    def __init__(self, note: str, names: tuple[str, ...]) -> None:
        more = f" and {len(names) - MAX_NAMED_FILES} more" if len(names) > MAX_NAMED_FILES else ""
        super().__init__(f"{note}: {len(names)} ({', '.join(names[:MAX_NAMED_FILES])}{more})")
        self.note = note
        self.names = names


class MethodWarning(UserWarning):
    """Another method may be better: what it was given is unlike what it assumes, or it stores pictures."""


class MissingExtraError(ClipAdapterError, ImportError):
    """An optional part is not installed."""


class EncoderUnavailableError(ClipAdapterError):
    """The weights of an encoder are neither on this machine nor to be had."""


class StoreError(ClipAdapterError):
    """The feature store can't be opened or written."""


class ArtifactError(ClipAdapterError):
    """A saved model is missing, altered, or can't be written."""


class FingerprintError(ArtifactError):
    """The encoder at hand is not the one that the model was fitted with."""


MAX_BRIEF_CHARACTERS = 80
MAX_BRIEF_VALUES = 3


def brief(value: object) -> str:
    """A value for a message: of an array or a list the size and at most three values, of a text the beginning.

    >>> brief("auto"), brief(0.5), brief([0.5] * 512)
    ("'auto'", '0.5', 'list of 512: 0.5, 0.5, 0.5 ...')
    >>> import numpy as np
    >>> brief(np.zeros((2, 512), np.float32))
    'array (2, 512) float32: 0.0, 0.0, 0.0 ...'
    """
    kind = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return _brief_array(value, "array" if kind == "ndarray" else kind, tuple(shape), dtype)
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        text = repr(value) if len(value) <= MAX_BRIEF_VALUES else ""
        if text and len(text) <= MAX_BRIEF_CHARACTERS:
            return text
        first = ", ".join(brief(item) for item in list(value)[:MAX_BRIEF_VALUES])
        return f"{kind} of {len(value)}: {first}{' ...' if len(value) > MAX_BRIEF_VALUES else ''}"
    if isinstance(value, (str, bytes)):
        shown = value[:MAX_BRIEF_CHARACTERS]
        return repr(shown) if len(shown) == len(value) else f"{shown!r} ... ({len(value)} characters)"
    text = repr(value)
    return text if len(text) <= MAX_BRIEF_CHARACTERS else f"an object of type {kind}"


def _brief_array(value: Any, kind: str, shape: tuple[int, ...], dtype: object) -> str:
    try:
        first = [brief(item) for item in value.reshape(-1)[:MAX_BRIEF_VALUES].tolist()]
        size = math.prod(shape)
    except Exception:  # other libraries' arrays, such as sparse ones, can't be sliced this way
        return f"{kind} {shape} {dtype}"
    if not shape:
        return first[0]
    name = f"{kind} {shape} {str(dtype).removeprefix('torch.')}"
    return f"{name}: {', '.join(first)}{' ...' if size > MAX_BRIEF_VALUES else ''}" if first else name


NEXT_EXTRAS = ("doctor", "onnx", "serve", "studio")
"""Extras that a person meets one after the other: the message about one names ``[all]``, which has them all."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra installs it.

    Args:
        module: dotted name of the module.
        extra: the extra of this package that brings it.
        purpose: what needs it, the subject of the error's sentence.

    Raises:
        MissingExtraError: if the module is not installed.

    >>> require("json", "lite", "this example").__name__
    'json'
    >>> require("no_such_module", "lite", "The lite encoder")
    Traceback (most recent call last):
    ...
    clipadapter.errors.MissingExtraError: The lite encoder needs an extra that is not installed: pip install ...
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise
        raise MissingExtraError(_missing_text(extra, purpose)) from error


def require_installed(module: str, extra: str, purpose: str) -> None:
    """As `require`, of a top-level module, which is not imported.

    Raises:
        MissingExtraError: if the module is not installed.

    >>> require_installed("json", "lite", "this example")
    """
    if sys.modules.get(module) is None and (module in sys.modules or importlib.util.find_spec(module) is None):
        raise MissingExtraError(_missing_text(extra, purpose))


def install_command(extra: str) -> str:
    """The command that installs an extra: from the folder that the package was installed from, else by its name.

    >>> install_command("lite").startswith("pip install ")
    True
    """
    from importlib.metadata import PackageNotFoundError, distribution  # late: a sixth of the time of a short command

    try:
        # Written by pip, see PEP 610. A package from an index has no such file.
        origin = json.loads(distribution("clipadapter").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    url = urlsplit(str(origin.get("url", "")))
    folder = unquote(url.path)
    if url.scheme != "file" or not Path(folder).is_dir():
        return f"pip install 'clipadapter[{extra}]'"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}{shlex.quote(f'{folder}[{extra}]')}"


def _missing_text(extra: str, purpose: str) -> str:
    more = " ([all] in place of it installs the others too)" if extra in NEXT_EXTRAS else ""
    return f"{purpose} needs an extra that is not installed: {install_command(extra)}{more}"


def needs_training(error: ModuleNotFoundError, purpose: str, extra: str = "lite") -> MissingExtraError | None:
    """What to raise instead of an error about a module of the extra ``train``; None if it is about another.

    Args:
        error: as it came.
        purpose: what needs the module, the subject of the sentence.
        extra: what to install; each brings ``train``, and "lite" an encoder that needs no hub.

    >>> print(needs_training(ModuleNotFoundError(name="torch"), "fit"))
    fit needs the part of clipadapter that learns, which is not installed: pip install ...
    """
    if (error.name or "").split(".")[0] not in TRAIN:
        return None
    return MissingExtraError(
        f"{purpose} needs the part of clipadapter that learns, which is not installed: {install_command(extra)}"
    )
