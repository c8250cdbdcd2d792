"""Open an exported file in a child process first.

A file that makes a backend crash or hang then ends the child and not the server. A checksum does not help against a
file that was written wrongly or has no checksum.
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

from clipadapter.errors import ArtifactError, ClipAdapterError
from clipadapter.formats import companion_files
from clipadapter.runtime.predictor import Predictor

DEFAULT_TIMEOUT_SECONDS = 120.0
PACKAGE_PARENT = Path(__file__).parents[2]
"""Working folder of the child: "-m" searches modules there first, and the server's own may hold anyone's files."""
MIN_ADDRESS_SPACE_BYTES = 8 << 30
ADDRESS_SPACE_PER_FILE_BYTE = 8
"""Address space of the child: backends reserve far more than they use, and a damaged size would need far more still."""


class IsolatedOpener:
    """Opens files in child processes, one at a time.

    Args:
        backend: "auto", "onnxruntime" or "openvino".
        timeout_seconds: time in which a file must be open and have run once.
    """

    def __init__(self, backend: str = "auto", timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        self._backend, self._timeout_seconds = backend, timeout_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._is_stopped = False

    def try_file(self, path: Path) -> None:
        """Open a file and run it on one grey picture, in a child process with one thread.

        Raises:
            ArtifactError: if the child fails, crashes, or does not end in time.
        """
        with self._lock:
            if self._is_stopped:
                raise ArtifactError(f"{path} was not opened: the server is ending")
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(path.absolute()), self._backend, str(self._timeout_seconds)],
                cwd=PACKAGE_PARENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # backends repeat the error there
                text=True,
            )
        with self._process as process:
            try:
                output, _ = process.communicate(timeout=self._timeout_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                raise self._timeout_error(path) from None
        self._check_exit(path, process.returncode, output)

    def stop(self) -> None:
        """Kill the running child, and start no other."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()

    def _timeout_error(self, path: Path) -> ArtifactError:
        return ArtifactError(
            f"{path} was not open after {self._timeout_seconds:g} seconds in a child process: export the model again"
        )

    def _check_exit(self, path: Path, code: int, output: str) -> None:
        if code == 0:
            return
        if code == -getattr(signal, "SIGALRM", 0):
            raise self._timeout_error(path)
        if code < 0:
            name = signal.Signals(-code).name if -code in {each.value for each in signal.Signals} else str(-code)
            raise ArtifactError(f"{path} ended the process that opened it by {name}: export the model again")
        try:
            reason = str(json.loads(output.splitlines()[-1])["error"])
        except (IndexError, ValueError, KeyError, TypeError):
            reason = f"{path} ended the process that opened it with status {code}: export the model again"
        raise ArtifactError(reason.replace(str(path.absolute()), str(path)))


def run_once(predictor: Predictor) -> None:
    """Run one grey picture.

    Raises:
        ArtifactError: if that fails, or an output is not finite.
    """
    predictor.run(predictor.grey_pictures(1))


def main(path: str, backend: str, timeout_seconds: str) -> int:
    """Entry point of the child.

    Args:
        path: the file.
        backend: as for `Predictor`.
        timeout_seconds: time after which the child ends itself, even if its parent is gone.

    Returns:
        The exit status; if it is not 0, the last line of stdout has the reason.
    """
    _limit_resources(Path(path), float(timeout_seconds))
    try:
        run_once(Predictor(path, backend=backend, threads=1))
    except (ClipAdapterError, MemoryError) as error:
        reason = str(error) or f"{path} needs more memory than its size allows for: export the model again"
        sys.stdout.write(json.dumps({"error": reason}) + "\n")
        return 1
    return 0


def _limit_resources(path: Path, timeout_seconds: float) -> None:
    """Limit time and memory where the system can, and be the first process to be killed when memory runs out."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(10)  # the server's requests have priority
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout_seconds)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        file_bytes = sum(file.stat().st_size for file in (path, *companion_files(path)) if file.is_file())
        limit = max(MIN_ADDRESS_SPACE_BYTES, ADDRESS_SPACE_PER_FILE_BYTE * file_bytes)
        hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard_limit == resource.RLIM_INFINITY or limit < hard_limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, hard_limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


if __name__ == "__main__":
    # os._exit: threads of a backend that hang must not hold the process.
    code = main(*sys.argv[1:4])
    sys.stdout.flush()
    os._exit(code)
