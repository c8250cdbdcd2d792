"""Base of backends: a backend runs image towers, in some precisions, or exported models, or both."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from clipadapter.errors import (
    ArtifactError,
    EncoderUnavailableError,
    InputError,
    MissingExtraError,
    StoreError,
    install_command,
)
from clipadapter.runtime.engines.graphs import FEATURES_OUTPUT, INPUT_NAMES, InferenceGraph, TorchGraph
from clipadapter.utils.files import default_cache_dir
from clipadapter.utils.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipadapter.runtime.engines.export_format import ExportFormat
    from clipadapter.utils.pixels import PixelSpec

PRECISIONS = ("fp32", "bf16", "int8")
Runner: TypeAlias = "Callable[[NDArray[np.uint8]], NDArray[np.float32]]"
"""Squares (n, s, s, 3), values 0 .. 255, to raw features (n, d). May be called from several threads."""
Int8Calibration: TypeAlias = "NDArray[np.uint8] | str"
"""Squares (m, s, s, 3), values 0 .. 255, that set the ranges of int8; or the digest of those with which a tower was
converted before, of an encoder of several passes that of each. The features depend on them."""


def calibration_digest(calibration: Int8Calibration | None) -> str:
    """16 hex digits that identify the squares; "" without any."""
    if calibration is None or isinstance(calibration, str):
        return calibration or ""
    from hashlib import blake2b  # late: every command imports this module

    return blake2b(calibration.tobytes(), digest_size=8).hexdigest()


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


class Backend:
    """Base of all backends: towers are converted to its ``format``, whose files it opens; or it runs them as is."""

    title: ClassVar[str]  # its name in a sentence, as its authors write it
    precisions: ClassVar[tuple[str, ...]] = ()
    """Precisions in which it runs image towers, from exact to fast; empty if it runs exported models only."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules that it needs besides the base install, the one that runs models first."""
    extra: ClassVar[str] = ""  # the extra that installs them
    devices: ClassVar[tuple[str, ...]] = ("cpu",)  # kinds of torch devices that it runs on
    format: ClassVar[ExportFormat | None] = None  # the format of exported models that it brings along, and opens
    opens: ClassVar[tuple[str, ...]] = ()  # names of other formats whose files it opens

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
    def version(cls) -> str:
        """The version of the module that runs models."""
        return _version(cls.packages[0])

    @classmethod
    def open_file(cls, path: Path, threads: int | None = None) -> InferenceGraph:
        """Open a file of its own format, or of one of ``opens``; None stands for the threads of all cores."""
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
        folder = cls.cache_folder(fingerprint, precision, calibration_digest(calibration))
        return read_cache_facts(folder) is not None

    def prepare(self, tower: Tower, precision: str, calibration: Int8Calibration | None = None) -> Runner:
        """Make a tower ready to run. It is converted once, into the cache folder, for int8 with the pictures given."""
        from clipadapter.utils.parallel import is_convolutional

        self.check_available(precision)
        if precision != "int8":
            calibration = None
        elif calibration is None:
            raise InputError(f"{tower.name} in int8 needs pictures to calibrate with")
        folder = self.cache_folder(tower.fingerprint, precision, calibration_digest(calibration))
        if read_cache_facts(folder) is None:  # only then `tower.module` is used, which may take seconds to load
            if isinstance(calibration, str):
                raise EncoderUnavailableError(
                    f"{tower.name} was calibrated for int8 on other pictures, and the converted tower is not on this "
                    "machine: use another precision, or fit again"
                )
            facts = {"encoder": tower.name, "convolutional": is_convolutional(tower.module)}
            build_in_cache(folder, partial(self._convert, tower, calibration), facts)
        return self.load(folder, precision)

    def _convert(self, tower: Tower, squares: NDArray[np.uint8] | None, folder: Path) -> None:
        """Write the converted tower into an empty folder; fp32 and bf16 share a folder."""
        from clipadapter.runtime.engines.tracing import SquareTower, example_squares

        assert self.format is not None
        path, inputs = folder / "steps" / f"tower{self.format.suffix}", (INPUT_NAMES["uint8"],)
        path.parent.mkdir()
        module, examples = SquareTower(tower.module, tower.pixels).eval(), (example_squares(tower.pixels),)
        graph = TorchGraph(module, FEATURES_OUTPUT, inputs, (FEATURES_OUTPUT,), examples)
        rows = None if squares is None else {inputs[0]: squares}
        name = f"the image tower of {tower.name}"
        for file in self.format.convert_model(graph, path, rows, name, "backend, such as 'torch'")({}):
            file.replace(folder / file.name)
        shutil.rmtree(path.parent)

    @classmethod
    def cache_folder(cls, fingerprint: str, precision: str, calibration: str = "") -> Path:
        """The folder of a converted tower, whether it exists or not."""
        kind = f"int8-{calibration}" if precision == "int8" else "float"
        name = cls.title.lower().replace(" ", "")
        return cache_root() / f"{fingerprint}-{name}-{cls.version()}-{kind}"

    @staticmethod
    def is_convolutional(folder: Path) -> bool:
        """Whether the converted tower in a folder is known to be convolutional."""
        return bool((read_cache_facts(folder) or {}).get("convolutional", False))

    def load(self, folder: Path, precision: str) -> Runner:
        """Open a converted tower, without torch."""
        raise NotImplementedError


def unreadable_file(path: Path, backend: str, error: Exception, line: int = 0) -> ArtifactError:
    """The error for a file that a backend can't open. Errors of backends have several lines, and no common base."""
    reason = str(error).strip().split("\n")[line]
    return ArtifactError(f"{path} can't be opened by {backend} ({reason}): copy or export it again")


def _version(module: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # late: every command imports this module

    try:
        return version(module)
    except PackageNotFoundError:  # installed under another name, such as onnxruntime-gpu
        return str(importlib.import_module(module).__version__)


# ---- Converted towers on disk: a folder is complete or absent, and two processes convert a tower only once ----

FACTS_FILE = "facts.json"
FORMAT_VERSION = 1


def cache_root() -> Path:
    """Folder of all converted towers."""
    return default_cache_dir() / "backends"


def read_cache_facts(folder: Path) -> dict[str, Any] | None:
    """Facts of a converted tower; None if the folder does not exist or is incomplete."""
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        is_complete = all((folder / name).stat().st_size == size for name, size in facts["files"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return facts if is_complete and facts.get("format") == FORMAT_VERSION else None


def build_in_cache(folder: Path, convert: Callable[[Path], None], facts: Mapping[str, Any]) -> None:
    """Have a function write files into an empty folder, its argument, and store JSON values with them."""
    from filelock import FileLock  # not in the base install, which only reads

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if read_cache_facts(folder) is not None:  # another process had the lock, and wrote them
                return
            prefix = f".{folder.name}."
            for abandoned in folder.parent.glob(f"{prefix}*.part"):  # of killed processes
                shutil.rmtree(abandoned, ignore_errors=True)
            with tempfile.TemporaryDirectory(".part", prefix, folder.parent, ignore_cleanup_errors=True) as name:
                part = Path(name)
                convert(part)
                files = {path.name: path.stat().st_size for path in part.iterdir() if path.is_file()}
                text = json.dumps({"format": FORMAT_VERSION, **facts, "files": files}, indent=1)
                (part / FACTS_FILE).write_text(text, encoding="utf-8")
                shutil.rmtree(folder, ignore_errors=True)  # if it is damaged
                part.rename(folder)
    except OSError as error:
        raise StoreError(
            f"the converted tower can't be stored in {folder.parent} ({error}): check the folder's permissions and "
            "free space, or set XDG_CACHE_HOME to another folder"
        ) from error


BACKENDS: Registry[Backend] = Registry("backend", "clipadapter.runtime.engines")
register_backend = BACKENDS.register
backend_info = BACKENDS.info
create_backend = BACKENDS.create


def list_backends() -> list[str]:
    """Names of the backends that run image towers. None is imported, since help texts list them."""
    return [name for name in BACKENDS.list() if BACKENDS.info(name).attributes.get("precisions")]
