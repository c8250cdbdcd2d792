"""Checkpoints of a long training, stored in the user's cache folder until it is done.

The name of the file is the digest of all that the result depends on, so only the same training resumes from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clipadapter.errors import InputError
from clipadapter.utils.files import default_cache_dir, path_without_links, write_atomically

FORMAT = "1"


def digest_of(facts: Iterable[object]) -> str:
    """Hex digest of texts, numbers, tensors and arrays, of this package's version and torch's."""
    total = hashlib.blake2b(digest_size=16)
    for fact in (FORMAT, version("clipadapter"), torch.__version__, *facts):
        if isinstance(fact, Tensor):
            fact = fact.detach().cpu().contiguous().numpy()
        if isinstance(fact, np.ndarray):
            total.update(f"{fact.dtype} {fact.shape} ".encode())
            total.update(np.ascontiguousarray(fact).data)
        else:
            total.update(f"{fact!r}\0".encode())
    return total.hexdigest()


def digest_of_fit(head: Any, facts: Iterable[object], neutral: Collection[str] = ()) -> str:
    """Digest of a head's class and parameters, but for those that change its result by rounding at most, and facts."""
    left_out = ("progress", "checkpoint", *neutral)
    parameters = sorted((k, v) for k, v in head.get_params(deep=False).items() if k not in left_out)
    return digest_of([type(head).__name__, parameters, *facts])


class Checkpoint:
    """A file with the state of a training, written at most once in so many seconds; None neither writes nor reads."""

    def __init__(self, digest: str, seconds: float | None) -> None:
        self.path: Path = default_cache_dir() / "training" / f"{digest}.safetensors"
        self._seconds = seconds
        try:
            path_without_links(default_cache_dir(), "training", self.path.name)
        except InputError:  # a link is not followed, and a file is no folder: that costs time after a kill, not the fit
            self._seconds = None
        self._last = time.monotonic()

    def read(self, like: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The state that was written; None if there is none, or it is truncated or altered.

        Or if it has not the tensors of ``like``, in the same shapes and types; others may be there.
        """
        if self._seconds is None or not self.path.exists():
            return None
        try:
            with safetensors.safe_open(str(self.path), framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                digest = (file.metadata() or {}).get("digest")
        except (OSError, safetensors.SafetensorError):
            return None
        if digest != _digest_of_arrays(state):
            return None
        fits = all(
            name in state and state[name].shape == value.shape and state[name].dtype == value.dtype
            for name, value in like.items()
        )
        return state if fits else None

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self._seconds is not None and time.monotonic() - self._last >= self._seconds

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Replace what is there by the state, whole or not at all."""
        arrays = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
        with contextlib.suppress(InputError):  # a folder that can't be written costs time after a kill, not the result
            write_atomically(self.path, safetensors.torch.save(arrays, {"digest": _digest_of_arrays(arrays)}))
        self._last = time.monotonic()

    def finish(self, state: Callable[[], Mapping[str, Tensor]]) -> None:
        """The training is done: delete the file."""
        self.remove()

    def remove(self) -> None:
        """Delete the file."""
        if self._seconds is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


class KeptCheckpoint(Checkpoint):
    """A checkpoint that keeps the last state of a finished training, since more follows it.

    Whoever does the rest removes it. The same training then starts at its end.
    """

    def finish(self, state: Callable[[], Mapping[str, Tensor]]) -> None:
        """Write the last state."""
        if self._seconds is not None:
            self.write(state())


def _digest_of_arrays(arrays: Mapping[str, Tensor]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        total.update(name.encode())
        total.update(arrays[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
