"""What runs in a decoder process: it decodes one picture after the other; see `decode_process`, its parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import IO, Any

from clipadapter.data.decode_process import PROCESS_BYTES_PER_PIXEL
from clipadapter.data.images import finish_image, open_image
from clipadapter.errors import ImageError
from clipadapter.utils.parallel import count_cores

SPARE_BYTES = 256 << 20  # memory that a process can allocate in addition to that of its picture
MAX_DECODER_THREADS = 4  # threads of one process for AVIF or HEIC


def serve() -> None:
    """Main function of a decoder process: decode one picture after the other until the input is closed."""
    # Output of a decoder must not get between the pixels.
    source, target = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if hasattr(signal, "SIGINT"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent by the terminal to all processes: the parent decides
    _limit_decoders()
    while line := source.readline():
        _serve_one(json.loads(line), source, target)


def _limit_decoders() -> None:
    """Limit the threads of decoders, and what they read beside the picture."""
    n_threads = min(MAX_DECODER_THREADS, count_cores())
    with contextlib.suppress(ImportError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = n_threads
    with contextlib.suppress(ImportError):
        from pi_heif import options

        options.DECODE_THREADS = n_threads
        options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False


def _serve_one(request: dict[str, Any], source: IO[bytes], target: IO[bytes]) -> None:
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
    """Limit the processor time of all threads together, from now on; 0: no limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:
        return
    # OSError: the system does not say what is allocated; ValueError: the hard limit is lower.
    with contextlib.suppress(OSError, ValueError):
        allocated = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
        # Not RLIMIT_AS: allocators reserve address space for each thread that they never use.
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (allocated + size + SPARE_BYTES, hard))
