"""Files of this machine through fsspec; the first worker that opens ``07.png`` kills its node, then itself."""

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
            os.kill(os.getppid(), signal.SIGKILL)  # the raylet of the node
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._open(path, *args, **kwargs)
