"""Pictures of slow formats are decoded in a process of their own, which can be ended.

A call into a decoder's C code can't be stopped in a thread, and some decoders hold Python's global lock meanwhile. Here
the processor time is limited by a timer of the process, its memory by a limit on what it allocates, and whoever waits
for it can end it. Processes are kept for the next picture; each has one at a time, and ends when its input is closed.

What goes over the pipes: a line of JSON and the file; a line with the size, or with a reason why not; a line that lets
it go on, since there is room in memory; a line with the size again, and the pixels.
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
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from clipadapter.data.decode_memory import PROCESS_BYTES_PER_PIXEL, MemoryBudget
from clipadapter.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

WAIT_RATIO = 10
MIN_WAIT_SECONDS = 60.0
"""By the clock a process may take that many times its processor time, since others run too, and this at least."""
SPARE_BYTES = 256 << 20
"""Memory that a process may allocate beside that of its picture."""
IDLE_SECONDS = 10.0
"""After which a process that has nothing to do is ended."""
MAX_AVIF_THREADS = 4
_START = "import sys; sys.path[:] = {path!r}; from clipadapter.data.decode_process import serve; serve()"


def can_decode_apart() -> bool:
    """Whether there is an interpreter to start: programs that were packed into one file have none."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


class _Process:
    """One process that decodes."""

    def __init__(self) -> None:
        code = _START.format(path=sys.path)
        self.popen = subprocess.Popen([sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.write_end, self.read_end = self.popen.stdin, self.popen.stdout

    def ask(self, request: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        """Send a line and what belongs to it, and read the line that comes back.

        Raises:
            OSError, ValueError: if the process has ended.
        """
        self.write_end.write(json.dumps(request).encode() + b"\n")
        self.write_end.write(body)
        self.write_end.flush()
        reply: dict[str, Any] = json.loads(self.read_end.readline() or b"-")
        return reply

    def end(self) -> int:
        """Kill it and say how it ended; a negative number is a signal."""
        self.popen.kill()
        with contextlib.suppress(OSError):
            self.write_end.close()
        self.read_end.close()
        return self.popen.wait()


class Decoders:
    """The processes that decode for this one.

    Args:
        budget: memory that their pictures share.
    """

    def __init__(self, budget: MemoryBudget | None = None) -> None:
        self.budget = budget or MemoryBudget()
        self._lock = threading.Lock()
        self._idle: list[tuple[_Process, float]] = []
        self._busy: set[_Process] = set()
        self._timer: threading.Timer | None = None

    def decode(self, data: bytes, name: str, max_pixels: int, max_seconds: float) -> Image.Image:
        """A file as an upright picture in mode RGB.

        Raises:
            ImageError: if it can't be read, takes more processor time than ``max_seconds``, or was stopped.
        """
        from PIL import Image

        process = self._take()
        limited = hasattr(signal, "setitimer")
        wait = max(WAIT_RATIO * max_seconds, MIN_WAIT_SECONDS) if limited else max_seconds
        timer = self._start_timer(wait, process.popen.kill)
        try:
            request = {"bytes": len(data), "name": name, "max_pixels": max_pixels, "max_seconds": max_seconds}
            reply = process.ask(request, data)
            if "size" in reply:
                width, height = reply["size"]
                with self.budget.hold(PROCESS_BYTES_PER_PIXEL * width * height):
                    reply = process.ask({})
                    if "size" in reply:
                        width, height = reply["size"]
                        pixels = process.read_end.read(3 * width * height)
                        image = Image.frombytes("RGB", (width, height), pixels)
        except (OSError, ValueError) as error:
            raise ImageError(name, self._why_ended(process, max_seconds)) from error
        except BaseException:
            self._end(process)
            raise
        finally:
            timer.cancel()
        self._give_back(process)
        if "size" not in reply:
            raise ImageError(name, str(reply.get("reason")))
        return image

    def stop(self) -> None:
        """End all processes; whoever waits for one gets an ImageError."""
        with self._lock:
            processes, self._idle = [process for process, _ in self._idle], []
            for process in self._busy:
                process.popen.kill()
        for process in processes:
            process.end()

    def forget(self) -> None:
        """Leave the processes to the process that started them: called in one that was forked from it."""
        for process in (*self._busy, *(process for process, _ in self._idle)):
            process.popen.returncode = 0  # else it would be waited for in vain
        self.budget.reset()
        self._lock, self._idle, self._busy, self._timer = threading.Lock(), [], set(), None

    def _take(self) -> _Process:
        with self._lock:
            process = self._idle.pop()[0] if self._idle else None
        if process is not None and process.popen.poll() is not None:
            process.end()
            process = None
        process = process or _Process()
        with self._lock:
            self._busy.add(process)
        return process

    def _give_back(self, process: _Process) -> None:
        with self._lock:
            self._busy.discard(process)
            self._idle.append((process, time.monotonic()))
            if self._timer is None:
                self._timer = self._start_timer(IDLE_SECONDS, self._end_idle)

    def _end_idle(self) -> None:
        with self._lock:
            before = time.monotonic() - IDLE_SECONDS
            old = [process for process, since in self._idle if since <= before]
            self._idle = [(process, since) for process, since in self._idle if since > before]
            self._timer = self._start_timer(IDLE_SECONDS, self._end_idle) if self._idle else None
        for process in old:
            process.end()

    @staticmethod
    def _start_timer(seconds: float, action: Callable[[], object]) -> threading.Timer:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
        return timer

    def _end(self, process: _Process) -> int:
        with self._lock:
            self._busy.discard(process)
        return process.end()

    def _why_ended(self, process: _Process, max_seconds: float) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.popen.wait(1)
        ended = self._end(process)
        if hasattr(signal, "SIGPROF") and ended == -signal.SIGPROF:
            return f"too costly to decode: more than {max_seconds:g} seconds of processor time"
        return f"the process that decodes it was ended ({ended}): out of memory, stopped, or waited for too long"


DECODERS = Decoders()
atexit.register(DECODERS.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DECODERS.forget)


def serve() -> None:
    """What a process does: one picture after the other until its input is closed."""
    # Whatever a decoder prints must not come between the pixels.
    source, target = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the parent decides
    with contextlib.suppress(ImportError):
        from PIL import AvifImagePlugin

        from clipadapter.parallel import count_cores

        AvifImagePlugin.DEFAULT_MAX_THREADS = min(MAX_AVIF_THREADS, count_cores())
    while line := source.readline():
        _serve_one(json.loads(line), source, target)


def _serve_one(request: dict[str, Any], source: IO[bytes], target: IO[bytes]) -> None:
    from clipadapter.data.images import finish_image, open_image

    data = source.read(request["bytes"])

    def reply(line: dict[str, Any], pixels: bytes = b"") -> None:
        target.write(json.dumps(line).encode() + b"\n")
        target.write(pixels)
        target.flush()

    try:
        _limit_seconds(request["max_seconds"])
        _limit_memory(0)
        image, _ = open_image(data, request["name"], request["max_pixels"])
        reply({"size": image.size})
        source.readline()
        _limit_memory(PROCESS_BYTES_PER_PIXEL * image.width * image.height)
        rgb = finish_image(image, request["name"])
        _limit_seconds(0)
        reply({"size": rgb.size}, rgb.tobytes())
    except ImageError as error:
        reply({"reason": error.reason})


def _limit_seconds(seconds: float) -> None:
    """From here on, processor time of all threads together; 0 for no limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(OSError, ValueError):  # ValueError: the limit that it was started with is lower
        used = _data_bytes()
        if used:
            # Not RLIMIT_AS: allocators reserve many addresses for each thread that they never use.
            hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
            resource.setrlimit(resource.RLIMIT_DATA, (used + size + SPARE_BYTES, hard))


def _data_bytes() -> int:
    """Memory that this process has allocated; 0 where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
