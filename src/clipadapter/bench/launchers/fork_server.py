"""The server that workers of a study are forked from. Importing this module imports neither torch nor a head."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading

START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
"""How workers start. A server imports torch once, and each worker is a fork of it, which takes milliseconds. Elsewhere
each worker is a new process: Windows has no fork, and on macOS system libraries may crash after one."""
SERVER_IMPORTS = ("torch", "clipadapter.bench.worker")


def start_fork_server(workers: int | None) -> None:
    """Start the server, if workers will be forked and it does not run yet. It is killed when this process ends.

    It imports torch meanwhile, so that it is best started before the caller does the same.

    Args:
        workers: how many there will be; with one, this process does the work itself. None for one per core.
    """
    import multiprocessing.forkserver

    from clipadapter.parallel import count_cores

    if workers == 1 or count_cores() == 1 or START_METHOD != "forkserver":
        return
    multiprocessing.set_forkserver_preload(list(SERVER_IMPORTS))
    handles_signals = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if handles_signals else None
    try:
        multiprocessing.forkserver.ensure_running()  # it inherits that Ctrl-C is ignored, also during its imports
    finally:
        if handles_signals:
            signal.signal(signal.SIGINT, handler)
    atexit.unregister(_kill_server)
    atexit.register(_kill_server)


def _kill_server() -> None:
    """Kill the server: if this process ends early, it would import for seconds more, and hold a pipe of its output."""
    pid = getattr(sys.modules["multiprocessing.forkserver"]._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
