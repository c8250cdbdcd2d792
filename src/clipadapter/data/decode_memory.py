"""A memory budget for decoding: threads share it, and wait until enough of it is free.

The peak memory of a decoder is a multiple of the picture's size, and depends on the format. Without a budget a process
would need that peak times the number of its threads.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIN_BUDGET_BYTES = 256 << 20
BUDGET_DIVISOR = 4
"""The budget is the memory of the machine or container, divided by this."""
PROCESS_BYTES_PER_PIXEL = 32
"""For formats that a separate process decodes: up to 25 in that process, and 7 in the one that receives the pixels."""

_JPEG_BYTES, _OTHER_BYTES = 12, 20
"""Peak bytes per pixel: the picture in the mode of the file and in RGB, of four bytes each, a copy during rotation, and
the decoder's own buffers, which are largest for WebP: two canvases and a copy."""
_COEFFICIENT_BYTES = 8
"""Per pixel of the whole file, even if it is shrunk: a decoder of a JPEG with several scans keeps the coefficients."""


def peak_bytes(kind: str, pixels: int, decoded_pixels: int, is_multi_scan: bool = False) -> int:
    """Bound of the memory that decoding takes, in addition to the file itself, of which some pixels are decoded."""
    per_pixel = _JPEG_BYTES if kind == "JPEG" else _OTHER_BYTES
    return per_pixel * decoded_pixels + (_COEFFICIENT_BYTES * pixels if is_multi_scan else 0)


class MemoryBudget:
    """A number of bytes that threads share, given out in the order of the requests.

    A request above the whole budget is granted when nothing else is in use, so that it does not wait forever. By
    default the budget is a part of the machine's memory.
    """

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._held = 0

    def reset(self) -> None:
        """Remove all holders and waiters: for a forked process, which has none of these threads."""
        self._changed, self._waiting, self._held = threading.Condition(), deque(), 0

    @property
    def held(self) -> int:
        """Bytes that are in use."""
        return self._held

    @property
    def waiting(self) -> int:
        """Number of waiting threads."""
        return len(self._waiting)

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until ``size`` bytes are free, and hold them until the end of the block."""
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
                self._total = max(MIN_BUDGET_BYTES, memory_bytes() // BUDGET_DIVISOR)
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
    """Bytes that this process can use: of the machine, or of its container if fewer; 4 GiB if neither is known."""
    limits = [4 << 30]
    if hasattr(os, "sysconf") and {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in _cgroup_limits():
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def _cgroup_limits(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Files that can contain the memory limit: of the process's group, and of the root as a container sees it."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return []
    group_paths = [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    paths = [root / path / "memory.max" for path in group_paths]
    return [*paths, root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
