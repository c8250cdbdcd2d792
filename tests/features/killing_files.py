"""Files of this machine through fsspec; the first one that opens ``07.png`` is killed."""

import os
import signal
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem


class KillingFiles(LocalFileSystem):
    protocol = "killing"

    def _open(self, path, *args, **kwargs):
        marker = Path(path).parents[2] / "killed"
        if path.endswith("07.png") and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._open(path, *args, **kwargs)
