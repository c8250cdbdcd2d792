"""Limits of decoding: processes for slow formats, which can be stopped, and a memory budget of all threads.

A call into a decoder's C code can't be stopped in a thread, and some decoders hold Python's global lock. A process has
a timer that limits its processor time and a limit of the memory that it allocates, and its parent can kill it.
Processes are reused for later pictures. Each decodes one picture at a time, and ends when its input is closed.

Protocol: the parent sends a line of JSON and the file. The process replies with a line that has the size of the
picture, or the reason why it can't be read. When enough memory is free, the parent sends a line, and the process
replies with a line that has the size again, and the pixels.

Here and in this process threads share a memory budget, and wait until enough of it is free. The peak memory of a
decoder is a multiple of the picture's size, and depends on the format. Without a budget a process would need that peak
times the number of its threads.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipadapter.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

WAIT_RATIO = 10
MIN_WAIT_SECONDS = 60.0
"""Limits of the waiting time: a multiple of the processor time, since other processes run too, and a minimum."""
IDLE_SECONDS = 10.0  # time after which an idle process is ended
MIN_BUDGET_BYTES = 256 << 20
BUDGET_DIVISOR = 4  # the budget is the memory of the machine or container, divided by this
PROCESS_BYTES_PER_PIXEL = 32
"""For formats that a separate process decodes: up to 25 in that process, and 7 in the one that receives the pixels."""

_JPEG_BYTES, _OTHER_BYTES = 12, 20
"""Peak bytes per pixel: the picture in the mode of the file and in RGB, of four bytes each, a copy during rotation, and
the decoder's own buffers, which are largest for WebP: two canvases and a copy."""
_COEFFICIENT_BYTES = 8
"""Per pixel of the whole file, even if it is shrunk: a decoder of a JPEG with several scans keeps the coefficients."""
_START = "import sys; sys.path[:] = {path!r}; from clipadapter.data.decode_worker import serve; serve()"


def peak_bytes(kind: str, pixels: int, decoded_pixels: int, is_multi_scan: bool = False) -> int:
    """Bound of the memory that decoding takes, in addition to the file itself, of which some pixels are decoded."""
    per_pixel = _JPEG_BYTES if kind == "JPEG" else _OTHER_BYTES
    return per_pixel * decoded_pixels + (_COEFFICIENT_BYTES * pixels if is_multi_scan else 0)


class MemoryBudget:
    """Bytes that threads share, given out in the order of the requests; by default a part of the machine's memory."""

    # A request above the whole budget is granted when nothing else is in use, so that it does not wait forever.

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._held = 0

    def reset(self) -> None:
        """Remove all holders and waiters: for a forked process, which has none of these threads."""
        self._changed, self._waiting, self._held = threading.Condition(), deque(), 0

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until ``size`` bytes are free, and hold them until the end of the block."""
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
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
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


def can_start_process() -> bool:
    """Whether a Python interpreter can be started. Programs that are packed into one file have none."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


class _DecoderProcess:
    """One decoder process."""

    def __init__(self) -> None:
        code = _START.format(path=sys.path)
        self.popen = subprocess.Popen([sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.write_end, self.read_end = self.popen.stdin, self.popen.stdout

    def exchange(self, request: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        """Send a line and its body, and read the reply. OSError and ValueError say that the process has ended."""
        self.write_end.write(json.dumps(request).encode() + b"\n")
        self.write_end.write(body)
        self.write_end.flush()
        return json.loads(self.read_end.readline() or b"-")

    def end(self) -> int:
        """Kill the process, and return its exit code; a negative number is a signal."""
        self.popen.kill()
        with contextlib.suppress(OSError):
            self.write_end.close()
        self.read_end.close()
        return self.popen.wait()

    def describe_exit(self, max_seconds: float) -> str:
        """End the process, and say why it did not answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(1)
        ended = self.end()
        if hasattr(signal, "SIGPROF") and ended == -signal.SIGPROF:
            return f"too costly to decode: more than {max_seconds:g} seconds of processor time"
        return f"the decoder process ended ({ended}): out of memory, stopped, or too slow"


class DecoderProcesses:
    """The decoder processes of this process."""

    def __init__(self) -> None:
        self.budget = MemoryBudget()  # which the decoded pictures share
        self._lock = threading.Lock()
        self._idle: dict[_DecoderProcess, threading.Timer] = {}  # each with the timer that ends it
        self._busy: set[_DecoderProcess] = set()

    def decode(self, data: bytes, name: str, max_pixels: int, max_seconds: float) -> Image.Image:
        """Decode a file into an upright picture in mode RGB."""
        from PIL import Image

        wait = max(WAIT_RATIO * max_seconds, MIN_WAIT_SECONDS) if hasattr(signal, "setitimer") else max_seconds
        with self._use_process() as process:
            timer = self._start_timer(wait, process.popen.kill)
            try:
                request = {"bytes": len(data), "name": name, "max_pixels": max_pixels, "max_seconds": max_seconds}
                reply = process.exchange(request, data)
                if "size" in reply:
                    width, height = reply["size"]
                    with self.budget.hold(PROCESS_BYTES_PER_PIXEL * width * height):
                        reply = process.exchange({})
                        if "size" in reply:
                            width, height = reply["size"]
                            image = Image.frombytes("RGB", (width, height), process.read_end.read(3 * width * height))
            except (OSError, ValueError) as error:
                raise ImageError(name, process.describe_exit(max_seconds)) from error
            finally:
                timer.cancel()
        if "size" not in reply:
            raise ImageError(name, str(reply.get("reason")))
        return image

    def stop(self) -> None:
        """End all processes. Callers that wait for one get an ImageError."""
        with self._lock:
            processes, self._idle = list(self._idle), {}
            for process in self._busy:
                process.popen.kill()
        for process in processes:
            process.end()

    def reset_after_fork(self) -> None:
        """Drop the processes, which belong to the parent: called after a fork, in the child."""
        for process in (*self._busy, *self._idle):
            process.popen.returncode = 0  # else Popen would wait for a process that is not its child
        self.budget.reset()
        self._lock, self._idle, self._busy = threading.Lock(), {}, set()

    @contextlib.contextmanager
    def _use_process(self) -> Iterator[_DecoderProcess]:
        """An idle process, or a new one; it is ended if an error leaves the block."""
        with self._lock:
            process, timer = self._idle.popitem() if self._idle else (None, None)
        if timer is not None:
            timer.cancel()
        if process is not None and process.popen.poll() is not None:
            process.end()
            process = None
        process = process or _DecoderProcess()
        with self._lock:
            self._busy.add(process)
        try:
            yield process
        except BaseException:
            with self._lock:
                self._busy.discard(process)
            process.end()
            raise
        with self._lock:
            self._busy.discard(process)
            self._idle[process] = self._start_timer(IDLE_SECONDS, partial(self._end_idle, process))

    def _end_idle(self, process: _DecoderProcess) -> None:
        with self._lock:
            is_idle = self._idle.pop(process, None) is not None
        if is_idle:
            process.end()

    @staticmethod
    def _start_timer(seconds: float, action: Callable[[], object]) -> threading.Timer:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
        return timer


DECODER_PROCESSES = DecoderProcesses()
atexit.register(DECODER_PROCESSES.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DECODER_PROCESSES.reset_after_fork)
