"""Open an exported file in a child process first: a file that makes a runtime crash or hang ends the child only.

A checksum does not help against a file that was written wrongly or has no checksum.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path

from clipadapter.errors import ArtifactError, ClipAdapterError
from clipadapter.runtime.predictor import Predictor

TIMEOUT_SECONDS = 120.0
REFUSED = 3
"""Exit status of a child whose last line of stdout is the reason why it refused the file."""
PACKAGE_PARENT = Path(__file__).parents[2]
"""Working folder of the child: "-m" searches modules there first, and the server's own may hold anyone's files."""


_children: set[subprocess.Popen[str]] = set()
"""Those that are running, which `stop_children` ends."""


def stop_children() -> None:
    """End the children that are running: `try_in_child` then reports how they ended."""
    for child in list(_children):
        child.kill()


def try_in_child(path: Path, backend: str = "auto", timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Open a file and run it on one grey picture, in a child process with one thread."""
    again = "export the model again"
    command = [sys.executable, "-m", __name__, str(path.absolute()), backend, str(timeout_seconds)]
    child = subprocess.Popen(
        command,
        cwd=PACKAGE_PARENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # runtimes repeat the error there
        env={**os.environ, "PYTHONIOENCODING": "utf-8:surrogateescape"},  # a reason may name any file
        encoding="utf-8",
        errors="surrogateescape",
    )
    _children.add(child)
    with child:
        try:
            output, _ = child.communicate(timeout=timeout_seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            raise ArtifactError(
                f"{path} was not open after {timeout_seconds:g} seconds in a child process: {again}"
            ) from None
        finally:
            _children.discard(child)
    if child.returncode == REFUSED and output:
        raise ArtifactError(output.splitlines()[-1].replace(str(path.absolute()), str(path)))
    if child.returncode:
        names = {-each.value: f"by {each.name}" for each in signal.Signals}
        ending = names.get(child.returncode, f"with status {child.returncode}")
        raise ArtifactError(f"{path} ended the process that opened it {ending}: {again}")


def main(path: str, backend: str, timeout_seconds: str) -> int:
    """Entry point of the child; returns the exit status."""
    faulthandler.dump_traceback_later(float(timeout_seconds), exit=True)  # also if the server is gone
    try:
        predictor = Predictor(path, backend=backend, threads=1)
        predictor.run(predictor.grey_pictures(1))
    except ClipAdapterError as error:
        sys.stdout.write(f"{error}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    status = main(*sys.argv[1:4])
    sys.stdout.flush()
    os._exit(status)  # threads of a runtime that hang must not hold the process
