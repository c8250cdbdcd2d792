"""Stops or fails this process before the n-th operation that changes a file below a folder.

Scripts beside this file import it; each is run in a process of its own, since an audit hook can't be taken away.
"""

import errno
import os
import signal
import stat
import sys
import traceback
from contextlib import contextmanager

CHANGING = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.link", "os.symlink"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
TAKES_SPACE = {"open", "os.mkdir", "os.link", "os.symlink", "fsync"}
"""What fails on a full disk; names of files are exchanged and removed there as before."""
TORN_BYTES = 8
"""Fewer than any line has that is written."""


def status_of_child(act):
    """The exit status that an act in a child gives; 1 if it raises, less than 0 if a signal ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = act()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Operations:
    """Counts operations while it is armed.

    Args:
        root: only what lies below it counts.
    """

    def __init__(self, root):
        self.root, self.count, self.armed = str(root), 0, False
        self._at, self._act = -1, None
        # What a kill leaves is in the page cache: to wait for the disk would only take time.
        os.fsync = lambda handle: self._see("fsync", handle)
        sys.addaudithook(self._watch)

    @contextmanager
    def counted(self):
        """Count only; `count` is how many there were."""
        with self._armed(-1, None):
            yield

    @contextmanager
    def killed(self, at):
        """SIGKILL before operation ``at``; before a file is synced, its last bytes are lost too."""

        def kill(kind, what):
            if kind == "fsync" and stat.S_ISREG(os.fstat(what).st_mode):
                os.ftruncate(what, max(0, os.fstat(what).st_size - 1 - at % TORN_BYTES))
            os.kill(os.getpid(), signal.SIGKILL)

        with self._armed(at, kill):
            yield

    @contextmanager
    def failing(self, at):
        """The operation ``at`` fails as on a broken disk."""

        def fail(kind, what):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with self._armed(at, fail):
            yield

    @contextmanager
    def full(self, at):
        """From operation ``at`` on there is no space."""

        def fail(kind, what):
            self._at = self.count  # the next one as well
            if kind in TAKES_SPACE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with self._armed(at, fail):
            yield

    @contextmanager
    def _armed(self, at, act):
        self.count, self._at, self._act, self.armed = 0, at, act, True
        try:
            yield
        finally:
            self.armed = False

    def _watch(self, event, args):
        if not self.armed or not (event in CHANGING or event == "open"):
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITES):
            return
        if self.root in str(args[0]):
            self._see(event, args[0])

    def _see(self, kind, what):
        if self.armed:
            self.count += 1
            if self.count - 1 == self._at:
                self._act(kind, what)
