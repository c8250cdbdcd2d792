"""Open an exported file in a process of its own.

A file that makes a backend crash or hang then ends that process, and not the one that asks. The checksum of a file is
no help against a file that was written wrongly, or has none.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from clipadapter.errors import ArtifactError, ClipAdapterError
from clipadapter.files import OPENVINO_WEIGHTS_SUFFIX
from clipadapter.runtime._predictor import Predictor

SECONDS = 120.0
"""Time in which a file must be open and have answered once."""
PACKAGE_PARENT = Path(__file__).parents[2]
"""Where the child starts: "-m" looks for modules in the working folder first, which may hold anyone's files."""
MIN_MEMORY_BYTES = 8 << 30
MEMORY_PER_FILE_BYTE = 8
"""Address space of the child: backends reserve far more than they use, a damaged size asks for far more than that."""


class IsolatedOpener:
    """Opens files in child processes, one at a time.

    Args:
        backend: "auto", "onnxruntime" or "openvino".
        seconds: in which a file must be open and have answered once.
    """

    def __init__(self, backend: str = "auto", seconds: float = SECONDS) -> None:
        self._backend, self._seconds = backend, seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def try_file(self, path: Path) -> None:
        """Open a file and let it answer for one grey picture, in a child process with one thread.

        Raises:
            ArtifactError: if the child can't, crashes, or is not done in time.
        """
        with self._lock:
            if self._stopped:
                raise ArtifactError(f"{path} was not opened: the server is ending")
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(path.absolute()), self._backend, str(self._seconds)],
                cwd=PACKAGE_PARENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # backends write there what the error says already
                text=True,
            )
        with self._process as process:
            try:
                said, _ = process.communicate(timeout=self._seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise self._too_slow(path) from None
        self._judge(path, process.returncode, said)

    def stop(self) -> None:
        """End the child that is at work, and start no other."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _too_slow(self, path: Path) -> ArtifactError:
        return ArtifactError(
            f"{path} was not open after {self._seconds:g} seconds in a process of its own: export the model again"
        )

    def _judge(self, path: Path, code: int, said: str) -> None:
        if code == 0:
            return
        if code == -getattr(signal, "SIGALRM", 0):
            raise self._too_slow(path)
        if code < 0:
            name = signal.Signals(-code).name if -code in {each.value for each in signal.Signals} else str(-code)
            raise ArtifactError(f"{path} ended a process that opened it, by {name}: export the model again")
        try:
            reason = str(json.loads(said.splitlines()[-1])["error"])
        except (IndexError, ValueError, KeyError, TypeError):
            reason = f"{path} ended a process that opened it, with status {code}: export the model again"
        raise ArtifactError(reason.replace(str(path.absolute()), str(path)))


def answer_once(predictor: Predictor) -> None:
    """Run one grey picture.

    Raises:
        ArtifactError: if that fails, or gives what is no number.
    """
    side = predictor.pixels.size
    predictor.run(np.full((1, side, side, 3), 128, np.uint8))


def main(path: str, backend: str, seconds: str) -> int:
    """What the child does.

    Args:
        path: the file.
        backend: as for `Predictor`.
        seconds: after which it ends itself, whether its parent lives or not.

    Returns:
        The exit status; if it is not 0, the reason is the last line of stdout.
    """
    _limit(Path(path), float(seconds))
    try:
        answer_once(Predictor(path, backend=backend, threads=1))
    except (ClipAdapterError, MemoryError) as error:
        reason = str(error) or f"{path} needs more memory than a file of its size should: export the model again"
        sys.stdout.write(json.dumps({"error": reason}) + "\n")
        return 1
    return 0


def _limit(path: Path, seconds: float) -> None:
    """Bound time and memory, where the system can, and be the first to go when memory runs out."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)  # requests go first
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        size = sum(file.stat().st_size for file in (path, path.with_suffix(OPENVINO_WEIGHTS_SUFFIX)) if file.is_file())
        most = max(MIN_MEMORY_BYTES, MEMORY_PER_FILE_BYTE * size)
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


if __name__ == "__main__":
    # os._exit: threads of a backend that hang must not hold the process.
    code = main(*sys.argv[1:4])
    sys.stdout.flush()
    os._exit(code)
