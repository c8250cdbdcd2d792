"""Open an exported file in a child process first: a file that makes a runtime crash or hang ends the child only.

A checksum does not help against a file that was written wrongly.
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
REFUSED = 3  # exit status of a child whose last line of stdout is the reason why it refused the file
ENCODING = "utf-8"  # of the reason, which may name any file, whatever the encoding of streams is here
PACKAGE_PARENT = Path(__file__).parents[2]
"""Working folder of the child: "-m" searches modules there first, and the server's own may hold anyone's files."""

_children: set[subprocess.Popen[bytes]] = set()  # those that are running, which `stop_children` ends


def stop_children() -> None:
    """End the children that are running: `try_in_child` then reports how they ended."""
    for child in list(_children):
        child.kill()


def try_in_child(path: Path, backend: str = "auto", timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Open a file and run it on one grey picture, in a child process with one thread."""
    again = "export the model again"
    command = [sys.executable, "-m", __name__, str(path.absolute()), backend, str(timeout_seconds)]
    nothing = subprocess.DEVNULL  # for stderr too, where runtimes repeat the error
    child = subprocess.Popen(command, cwd=PACKAGE_PARENT, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing)
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
        reason = output.decode(ENCODING, "surrogateescape").splitlines()[-1]
        raise ArtifactError(reason.replace(str(path.absolute()), str(path)))
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
        sys.stdout.buffer.write(f"{error}\n".encode(ENCODING, "surrogateescape"))
        return REFUSED
    return 0


if __name__ == "__main__":
    status = main(*sys.argv[1:4])
    sys.stdout.flush()
    os._exit(status)  # threads of a runtime that hang must not hold the process
