"""What a backend is: it takes a tower and a precision, and gives a function from squares to features."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clipadapter.backends import _cache as cache
from clipadapter.errors import EncoderUnavailableError, InputError, MissingExtraError
from clipadapter.parallel import is_convolutional
from clipadapter.pixels import PixelSpec

PRECISIONS = ("fp32", "bf16", "int8")
Runner = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Squares (n, s, s, 3), values 0 .. 255, to raw features (n, d). May be called from several threads."""


@dataclass(frozen=True)
class Tower:
    """An image tower as backends take it.

    Args:
        name: the encoder's URI.
        fingerprint: the encoder's, in full precision.
        dim: width d of the features.
        pixels: how a picture becomes its input.
        network: a ``torch.nn.Module`` in inference mode, normalised pixels (n, 3, s, s) to (n, d); or a function that
            gives it, called when the module is first asked for: to convert a tower, not to run one that was converted.
    """

    name: str
    fingerprint: str
    dim: int
    pixels: PixelSpec
    network: Any

    @cached_property
    def module(self) -> Any:
        """The network, made if need be."""
        import torch

        return self.network if isinstance(self.network, torch.nn.Module) else self.network()


@dataclass(frozen=True, eq=False)
class Calibration:
    """Pictures by which the ranges of int8 values are set; the features depend on them.

    Args:
        squares: (m, s, s, 3), values 0 .. 255; None if only a tower that was converted with them is asked for.
        name: digest of the squares, if these are not at hand.
    """

    squares: NDArray[np.uint8] | None
    name: str = ""

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name it."""
        if self.squares is None:
            return self.name
        return blake2b(np.ascontiguousarray(self.squares).tobytes(), digest_size=8).hexdigest()


class Backend(ABC):
    """Base of all backends.

    Args:
        device: a torch device; only backends that say so can leave the CPU.

    Raises:
        InputError: if the backend can't run on the device.
    """

    precisions: ClassVar[tuple[str, ...]]
    """What it can run, from exact to fast."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules it needs beside the base install, the one that runs models first."""
    extra: ClassVar[str] = ""
    """The extra that brings them."""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def __init__(self, device: str = "cpu") -> None:
        if device.partition(":")[0] not in self.devices:
            raise InputError(
                f"the {self.title()} backend runs on {', '.join(self.devices)}, not on {device}: take backend 'torch'"
            )
        self.device = device

    @classmethod
    def title(cls) -> str:
        """Its name in a sentence."""
        return cls.__name__.removesuffix("Backend")

    @classmethod
    def missing(cls) -> str:
        """What is not installed, empty if it can run."""
        return next((name for name in cls.packages if importlib.util.find_spec(name) is None), "")

    @classmethod
    def check(cls, precision: str) -> None:
        """Refuse what can't run here.

        Raises:
            InputError: if it has no such precision.
            MissingExtraError: if a package is missing.
        """
        if precision not in cls.precisions:
            raise InputError(
                f"the {cls.title()} backend runs {', '.join(cls.precisions)}, not {precision}: take one of these, or "
                "leave the backend to be chosen ('auto')"
            )
        if cls.missing():
            raise MissingExtraError(f"the {cls.title()} backend needs an extra: pip install 'clipadapter[{cls.extra}]'")

    @classmethod
    def ready(cls, fingerprint: str, precision: str, calibration: Calibration | None = None) -> bool:
        """Whether an encoder of this fingerprint can run at once, without being converted."""
        return True

    @abstractmethod
    def run(self, tower: Tower, precision: str, calibration: Calibration | None = None) -> Runner:
        """Make the tower ready.

        Args:
            tower: what is run.
            precision: one of ``precisions``.
            calibration: pictures for int8; a tower that was converted with them before is taken from the cache.

        Raises:
            InputError: if it has no such precision, or int8 has no calibration.
            MissingExtraError: if a package is missing.
            EncoderUnavailableError: if the calibration's pictures are not at hand, nor a tower converted with them.
        """


class ConvertingBackend(Backend):
    """A backend that runs a file of its own, made once and kept in the cache folder."""

    def run(self, tower: Tower, precision: str, calibration: Calibration | None = None) -> Runner:
        """See `Backend.run`."""
        self.check(precision)
        if precision == "int8" and calibration is None:
            raise InputError(f"{tower.name} in int8 needs pictures to calibrate with")
        digest = "" if calibration is None or precision != "int8" else calibration.digest
        place = self.place(tower.fingerprint, precision, digest)
        if cache.facts(place) is None:  # else the module is not asked for, which may load for seconds
            self._build(tower, precision, calibration, digest, place)
        return self.load(place, precision)

    def _build(self, tower: Tower, precision: str, calibration: Calibration | None, digest: str, place: Path) -> None:
        if digest and calibration is not None and calibration.squares is None:
            raise EncoderUnavailableError(
                f"{tower.name} was calibrated for int8 on other pictures, and the converted tower is not on this "
                "machine: use another precision, or fit again"
            )
        facts = {
            "encoder": tower.name,
            "dim": tower.dim,
            "pixels": tower.pixels.to_dict(),
            "backend": self.title(),
            "precision": precision,
            "calibration": digest,
            "convolutional": is_convolutional(tower.module),
        }
        cache.build(place, lambda folder: self._convert(tower, precision, calibration, folder), facts)

    @classmethod
    def ready(cls, fingerprint: str, precision: str, calibration: Calibration | None = None) -> bool:
        """See `Backend.ready`."""
        digest = "" if calibration is None else calibration.digest
        return cache.facts(cls.place(fingerprint, precision, digest)) is not None

    @classmethod
    def place(cls, fingerprint: str, precision: str, calibration: str = "") -> Path:
        """Where the converted tower is, or would be."""
        kind = f"int8-{calibration}" if precision == "int8" else "float"
        name = cls.title().lower().replace(" ", "")
        return cache.root() / f"{fingerprint}-{name}-{_version(cls.packages[0])}-{kind}"

    @staticmethod
    def convolutional(folder: Path) -> bool:
        """Whether the tower that was converted into a folder is known to be convolutional."""
        return bool((cache.facts(folder) or {}).get("convolutional", False))

    @abstractmethod
    def _convert(self, tower: Tower, precision: str, calibration: Calibration | None, folder: Path) -> None:
        """Write the converted tower into an empty folder; fp32 and bf16 share one."""

    @abstractmethod
    def load(self, folder: Path, precision: str) -> Runner:
        """Open what `_convert` wrote; needs no torch."""


def _version(module: str) -> str:
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:  # a build under another name, such as onnxruntime-gpu
        return str(importlib.import_module(module).__version__)
