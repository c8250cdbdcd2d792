"""Golden outputs: an exported file proves itself where it is opened.

Kernels differ between processors and versions of a runtime, and some saturate. So a file has a few of the outputs that
it gave where it was made, for pictures that are drawn equally everywhere. Its first opening on a machine computes them
again. An empty file in the cache folder remembers that they were the same.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.utils.blocks import FINAL, Blocks, column_slices
from clipadapter.utils.files import default_cache_dir
from clipadapter.utils.pixels import PixelSpec, pack_squares

N_PICTURES = 2
MAX_COLUMNS = 128  # values of each block, and of the logits, that a file keeps: a few kilobytes
LOGITS = "logits"
LIMITS = {"fp32": 1e-3, "int8": 0.1}
"""How much outputs may differ, as a share of their length, by the precision of the image tower. A tenth is a cosine of
0.995, the mean that `clipadapter.runtime.engines.parity` asks of int8. Rounding alone made up to 0.035 in OpenVINO."""
INSTRUCTION_SETS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
MAX_CPU_TEXT = 1 << 14  # characters that the facts of the first core take
Golden = Mapping[str, NDArray[np.float32]]
"""Values (n, k) of each block and of the logits."""


def draw_squares(inputs: Sequence[PixelSpec]) -> list[NDArray[np.uint8]]:
    """Pictures of coarse and fine squares in all colours, each packed as `Predictor.run` takes one of them."""
    rng = np.random.RandomState(0)  # NumPy promises that its numbers stay the same
    pictures = []
    for _ in range(N_PICTURES):
        layers = [rng.randint(0, 128, (n, n, 3)) for n in (3, 40)]
        squares = []
        for spec in inputs:
            places = [np.arange(spec.size) * len(layer) // spec.size for layer in layers]
            parts = [layer[place][:, place] for layer, place in zip(layers, places, strict=True)]
            squares.append(np.add(*parts).astype(np.uint8))
        pictures.append(pack_squares(squares))
    return pictures


def compute_golden(
    run: Callable[[NDArray[np.uint8]], Any], inputs: Sequence[PixelSpec], blocks: Blocks
) -> dict[str, NDArray[np.float32]]:
    """Some outputs of a graph for the golden pictures; ``run`` is `Predictor.run`."""
    outputs = [run(square[None]) for square in draw_squares(inputs)]
    rows = np.concatenate([each.features if each.blocks is None else each.blocks for each in outputs])
    slices = column_slices(blocks) or {FINAL: slice(None)}
    values = {name: rows[:, part] for name, part in slices.items()}
    values[LOGITS] = np.concatenate([each.logits for each in outputs])
    return {name: _some_columns(each).astype("<f4") for name, each in values.items()}


def _some_columns(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    width = rows.shape[1]
    return rows[:, np.arange(min(width, MAX_COLUMNS)) * width // min(width, MAX_COLUMNS)]


def differences(golden: Golden, here: Golden) -> dict[str, float]:
    """How much each kind of output differs: as a share of its length, of the picture that differs most.

    >>> differences({"logits": np.float32([[3, 4]])}, {"logits": np.float32([[3, 6.5]])})
    {'logits': 0.5}
    """
    shares = {}
    for name, expected in golden.items():
        distances, lengths = (np.linalg.norm(rows, axis=1) for rows in (here[name] - expected, expected))
        shares[name] = float((distances / np.maximum(lengths, 1e-12)).max())
    return shares


# ---- The memory of files that gave their golden outputs here ----


def proof_file(sha256: str, runtime: str) -> Path:
    """The empty file that says so, of an exported file and of the name and version of what runs it."""
    from hashlib import blake2b  # late: loads OpenSSL, and every command imports this module

    capped = sorted(f"{name}={value}" for name, value in os.environ.items() if name.endswith("CPU_ISA"))
    facts = [sha256, runtime, np.__version__, _describe_core(), *capped]
    return default_cache_dir() / "golden" / blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()


def remember(proof: Path) -> None:
    """Create the file. Where nothing can be written, the outputs are computed at each opening."""
    with suppress(OSError):
        proof.parent.mkdir(parents=True, exist_ok=True)
        proof.touch()


def instruction_sets() -> str:
    """The instruction sets of this processor that matter to int8, for a message."""
    flags = _describe_core().split()
    names = [name for name in INSTRUCTION_SETS if name in flags]
    return f"{platform.machine()} with {', '.join(names)}" if names else platform.machine()


def _describe_core() -> str:
    """What the system says of the first core, its instruction sets among it, but for what changes."""
    if sys.platform == "linux":
        with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            lines = file.read(MAX_CPU_TEXT).partition("\n\n")[0].splitlines()
            return "\n".join(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU ")))
    return f"{platform.machine()} {os.environ.get('PROCESSOR_IDENTIFIER', '')}"
