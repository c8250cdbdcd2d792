"""Files of this machine through fsspec; a worker that opens one on another node than the named one kills its node."""

import os
import signal
from pathlib import Path

import ray
from fsspec.implementations.local import LocalFileSystem


class KillingFiles(LocalFileSystem):
    protocol = "killing"

    def __init__(self, spared_node):
        super().__init__()
        self.spared_node = spared_node

    def _open(self, path, *args, **kwargs):
        context = ray.get_runtime_context()
        if context.worker.mode == ray.WORKER_MODE and context.get_node_id() != self.spared_node:
            (Path(path).parents[2] / "killed").touch()
            os.kill(os.getppid(), signal.SIGKILL)  # the raylet of the node
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._open(path, *args, **kwargs)
