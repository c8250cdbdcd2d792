"""Base of backends: a backend runs image towers, in some precisions, or exported models, or both."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from clipadapter.backends.tower_cache import build_in_cache, cache_root, read_cache_facts
from clipadapter.errors import ArtifactError, EncoderUnavailableError, InputError, MissingExtraError, install_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipadapter.backends.formats import ExportFormat
    from clipadapter.utils.pixels import PixelSpec

PRECISIONS = ("fp32", "bf16", "int8")
DIGEST_BYTES = 8
"""Length of the digest of the pictures of a calibration."""
Runner: TypeAlias = "Callable[[NDArray[np.uint8]], NDArray[np.float32]]"
"""Squares (n, s, s, 3), values 0 .. 255, to raw features (n, d). May be called from several threads."""


@dataclass(frozen=True)
class Tower:
    """An image tower."""

    name: str  # the encoder's URI
    fingerprint: str  # the encoder's, in full precision
    dim: int  # width d of the features
    pixels: PixelSpec  # how a picture becomes its input
    # A ``torch.nn.Module`` in inference mode, normalised pixels (n, 3, s, s) to (n, d); or a function that returns it.
    # The function is called to convert a tower, not to run one that was converted before
    network: Any

    @cached_property
    def module(self) -> Any:
        """The network, created at the first use."""
        import torch

        return self.network if isinstance(self.network, torch.nn.Module) else self.network()


@dataclass(frozen=True, eq=False)
class Int8Calibration:
    """Pictures that set the ranges of int8 values; the features depend on them."""

    # (m, s, s, 3), values 0 .. 255; None to load a tower that was converted with them before
    squares: NDArray[np.uint8] | None
    name: str = ""  # digest of the squares, if these are None
    # Those of the further passes of an encoder of several blocks, which may see squares of other sizes
    further: tuple[Int8Calibration, ...] = ()

    @cached_property
    def digest(self) -> str:
        """16 hex digits for each pass that identify the squares."""
        if self.squares is None:
            return self.name
        own = blake2b(self.squares.tobytes(), digest_size=DIGEST_BYTES).hexdigest()
        return own + "".join(each.digest for each in self.further)

    def of_pass(self, i: int) -> Int8Calibration:
        """The calibration of one pass: the i-th of those whose tower backends run."""
        if self.squares is None:
            return Int8Calibration(None, self.name[2 * DIGEST_BYTES * i : 2 * DIGEST_BYTES * (i + 1)])
        return Int8Calibration(self.squares) if i == 0 else self.further[i - 1]


@dataclass(frozen=True)
class InferenceGraph:
    """The graph of an open file."""

    metadata: str  # text under `formats.METADATA_KEY`; "" if the file has none
    inputs: tuple[str, ...]  # names of its inputs, in any order
    widths: Mapping[str, int]  # columns of each output by name; 0 for an output with one number per picture
    # The inputs (n, ...) by name to the outputs by name; may be called from several threads
    run: Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


class Backend:
    """Base of all backends.

    Args:
        device: a torch device, one of ``devices``.
    """

    title: ClassVar[str]
    """Its name in a sentence, as its authors write it."""
    precisions: ClassVar[tuple[str, ...]] = ()
    """Precisions in which it runs image towers, from exact to fast; empty if it runs exported models only."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules that it needs besides the base install, the one that runs models first."""
    extra: ClassVar[str] = ""
    """The extra that installs them."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    format: ClassVar[ExportFormat | None] = None
    """The format of exported models that it brings along."""

    def __init__(self, device: str = "cpu") -> None:
        if device.partition(":")[0] not in self.devices:
            raise InputError(
                f"the {self.title} backend runs on {', '.join(self.devices)}, not on {device}: use backend 'torch'"
            )
        self.device = device

    @classmethod
    def is_installed(cls) -> bool:
        """Whether the module that runs models can be imported."""
        return importlib.util.find_spec(cls.packages[0]) is not None

    @classmethod
    def open_file(cls, path: Path, threads: int | None = None) -> InferenceGraph:
        """Open the file of a graph.

        Args:
            path: of a format that names this backend.
            threads: None for all cores.
        """
        raise InputError(f"the {cls.title} backend opens no files: use another")

    @classmethod
    def missing_package(cls) -> str:
        """A package that is not installed; "" if none is missing."""
        return next((name for name in cls.packages if importlib.util.find_spec(name) is None), "")

    @classmethod
    def check_available(cls, precision: str) -> None:
        """Refuse what can't run here."""
        if precision not in cls.precisions:
            raise InputError(
                f"the {cls.title} backend runs {', '.join(cls.precisions) or 'exported models only'}, not "
                f"{precision}: use one of these, or the backend 'auto'"
            )
        if cls.missing_package():
            raise MissingExtraError(f"the {cls.title} backend needs an extra: {install_command(cls.extra)}")

    @classmethod
    def is_ready(cls, fingerprint: str, precision: str, calibration: Int8Calibration | None = None) -> bool:
        """Whether an encoder with this fingerprint can run without being converted first."""
        return True

    def prepare(self, tower: Tower, precision: str, calibration: Int8Calibration | None = None) -> Runner:
        """Make a tower ready to run.

        Args:
            tower: the tower.
            precision: one of ``precisions``.
            calibration: pictures for int8; a tower that was converted with them before is loaded from the cache.
        """
        raise InputError(f"the {self.title} backend runs exported models only: use another for an image tower")


class ConvertingBackend(Backend, ABC):
    """A backend that converts towers to files of its format, once, in the cache folder."""

    format: ClassVar[ExportFormat]

    def prepare(self, tower: Tower, precision: str, calibration: Int8Calibration | None = None) -> Runner:
        """See `Backend.prepare`."""
        self.check_available(precision)
        if precision == "int8" and calibration is None:
            raise InputError(f"{tower.name} in int8 needs pictures to calibrate with")
        digest = "" if calibration is None or precision != "int8" else calibration.digest
        folder = self.cache_folder(tower.fingerprint, precision, digest)
        if read_cache_facts(folder) is None:  # otherwise `tower.module` is not used, which may take seconds to load
            self._build(tower, precision, calibration if digest else None, folder)
        return self.load(folder, precision)

    def _build(self, tower: Tower, precision: str, calibration: Int8Calibration | None, folder: Path) -> None:
        from clipadapter.utils.parallel import is_convolutional

        if calibration is not None and calibration.squares is None:
            raise EncoderUnavailableError(
                f"{tower.name} was calibrated for int8 on other pictures, and the converted tower is not on this "
                "machine: use another precision, or fit again"
            )
        facts = {
            "encoder": tower.name,
            "precision": precision,
            "calibration": "" if calibration is None else calibration.digest,
            "convolutional": is_convolutional(tower.module),
        }
        squares = None if calibration is None else calibration.squares
        build_in_cache(folder, lambda part: self._convert(tower, squares, part), facts)

    def _convert(self, tower: Tower, squares: NDArray[np.uint8] | None, folder: Path) -> None:
        """Write the converted tower into an empty folder; fp32 and bf16 share a folder."""
        from clipadapter.backends.tracing import tower_graph

        graph, steps = tower_graph(tower), folder / "steps"
        steps.mkdir()
        rows = None if squares is None else {graph.input_names[0]: squares}
        try:
            files = self.format.convert(graph, self.tower_file(steps), rows)({})
        except RuntimeError as error:  # of a converter
            reason = str(error).strip().split("\n")[0]
            raise InputError(
                f"the image tower of {tower.name} can't be written as {self.format.title} ({reason}): use another "
                "backend, such as 'torch'"
            ) from error
        for file in files:
            file.replace(folder / file.name)
        shutil.rmtree(steps)

    @classmethod
    def is_ready(cls, fingerprint: str, precision: str, calibration: Int8Calibration | None = None) -> bool:
        """See `Backend.is_ready`."""
        digest = "" if calibration is None else calibration.digest
        return read_cache_facts(cls.cache_folder(fingerprint, precision, digest)) is not None

    @classmethod
    def cache_folder(cls, fingerprint: str, precision: str, calibration: str = "") -> Path:
        """The folder of a converted tower, whether it exists or not."""
        kind = f"int8-{calibration}" if precision == "int8" else "float"
        name = cls.title.lower().replace(" ", "")
        return cache_root() / f"{fingerprint}-{name}-{_version(cls.packages[0])}-{kind}"

    @classmethod
    def tower_file(cls, folder: Path) -> Path:
        """The file to open of a converted tower."""
        return folder / f"tower{cls.format.suffix}"

    @staticmethod
    def is_convolutional(folder: Path) -> bool:
        """Whether the converted tower in a folder is known to be convolutional."""
        return bool((read_cache_facts(folder) or {}).get("convolutional", False))

    @abstractmethod
    def load(self, folder: Path, precision: str) -> Runner:
        """Open the files that `_convert` wrote, without torch."""


def unreadable_file(path: Path, backend: str, error: Exception, line: int = 0) -> ArtifactError:
    """The error for a file that a backend can't open. Errors of backends have several lines, and no common base."""
    reason = str(error).strip().split("\n")[line]
    return ArtifactError(f"{path} can't be opened by {backend} ({reason}): copy or export it again")


def _version(module: str) -> str:
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:  # installed under another name, such as onnxruntime-gpu
        return str(importlib.import_module(module).__version__)
