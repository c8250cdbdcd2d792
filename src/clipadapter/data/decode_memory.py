"""Memory of pictures that are being decoded: threads share one budget, and wait until there is room.

The peak of a decoder is a multiple of the picture it gives, and differs by format. Without a budget the memory of a
process would be that peak times its threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIN_BUDGET_BYTES = 256 << 20
BUDGET_SHARE = 4
"""The budget is the memory of the machine, or of the container, divided by this."""
PROCESS_BYTES_PER_PIXEL = 32
"""Of formats that are decoded in a process of their own: up to 25 there, and 7 where the pixels are taken over."""

_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_RGB_BYTES = 4
"""Pillow keeps a pixel of several channels in four bytes."""
_DECODER_BYTES = {"WebP": 12, "TIFF": 4}
"""Buffers of the decoder, for each pixel: two canvases and a copy; the strip, which may be the whole picture."""
_COEFFICIENT_BYTES = 8


def peak_bytes(kind: str, mode: str, pixels: int, kept: int | None = None, several_scans: bool = False) -> int:
    """How much memory decoding takes at most, beside the file itself.

    That is the picture in the mode of its file, in RGB if that is another mode, and once more while it is turned.

    Args:
        kind: format, such as "JPEG".
        mode: of Pillow, in which the decoder gives the picture.
        pixels: of the file.
        kept: pixels that are left if the file is shrunk while it is decoded.
        several_scans: whether it is a JPEG whose coefficients are kept.

    >>> peak_bytes("JPEG", "RGB", 12_000_000), peak_bytes("PNG", "RGBA", 12_000_000)
    (96000000, 144000000)
    """
    per_pixel = _MODE_BYTES.get(mode, 4) + _DECODER_BYTES.get(kind, 0) + _RGB_BYTES
    per_pixel += 0 if mode == "RGB" else _RGB_BYTES
    return per_pixel * (pixels if kept is None else kept) + (_COEFFICIENT_BYTES * pixels if several_scans else 0)


class MemoryBudget:
    """Bytes that several threads share, handed out in the order in which they were asked for.

    What is larger than the whole budget gets it alone, so that nothing waits forever.

    Args:
        total: bytes; a share of the machine's memory, found when it is first needed, if not given.
    """

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._held = 0

    def reset(self) -> None:
        """Forget all who hold or wait: called in a process that was forked, which has none of these threads."""
        self._changed, self._waiting, self._held = threading.Condition(), deque(), 0

    @property
    def held(self) -> int:
        """Bytes that are in use."""
        return self._held

    @property
    def waiting(self) -> int:
        """Threads that wait for room."""
        return len(self._waiting)

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until there is room for ``size`` bytes, and keep them until the end of the block."""
        self._take(size)
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()

    def _take(self, size: int) -> None:
        ticket = object()
        with self._changed:
            if self._total is None:
                self._total = max(MIN_BUDGET_BYTES, memory_bytes() // BUDGET_SHARE)
            total = self._total
            self._waiting.append(ticket)
            try:
                self._changed.wait_for(
                    lambda: self._waiting[0] is ticket and (not self._held or self._held + size <= total)
                )
                self._held += size
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()


def memory_bytes() -> int:
    """Memory that this process may use: that of the machine, or the limit of its container if that is less.

    Returns:
        bytes; 4 GiB where neither can be found out.
    """
    found = [4 << 30]
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _cgroup_limits():
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            found.append(int(text))
    return min(found)


def _cgroup_limits(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Files that may hold the limit of memory: of the group itself, and of the root as a container sees it."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return []
    own = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    paths = [root / path / "memory.max" for path in own]
    return [*paths, root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
