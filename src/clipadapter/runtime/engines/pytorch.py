"""The PyTorch backend, which is always installed."""

from __future__ import annotations

import copy
import threading
from functools import cache, partial
from typing import TYPE_CHECKING

from clipadapter.runtime.engines.base import Backend, Int8Calibration, Runner, Tower, register_backend
from clipadapter.utils.devices import DEVICES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module


@register_backend("torch")
class TorchBackend(Backend):
    """PyTorch, on the CPU or a GPU; on a GPU with channels-last weights and asynchronous copies."""

    title = "Torch"
    precisions = ("fp32", "bf16")
    devices = DEVICES

    @classmethod
    def is_ready(cls, fingerprint: str, precision: str, calibration: Int8Calibration | None = None) -> bool:
        """Always: nothing is converted."""
        return True

    def prepare(self, tower: Tower, precision: str, calibration: Int8Calibration | None = None) -> Runner:
        """See `Backend.prepare`; the module is created with the first squares."""
        import torch

        from clipadapter.utils.parallel import run_in_batches

        self.check_available(precision)
        on_gpu, lock = self.device.startswith("cuda"), threading.Lock()
        place_on_device = cache(partial(self._place_on_device, tower, precision))

        def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
            with lock:
                module = place_on_device()
            batch: Tensor = torch.from_numpy(squares)
            if on_gpu:
                batch = batch.pin_memory()
            with torch.inference_mode():
                features = run_in_batches(module, module, batch.to(self.device, non_blocking=True)).cpu()
            rows: NDArray[np.float32] = features.numpy()
            return rows

        return run

    def _place_on_device(self, tower: Tower, precision: str) -> Module:
        import torch

        from clipadapter.runtime.engines.tracing import SquareTower

        dtype, network = torch.float32, tower.module
        if precision == "bf16":
            dtype, network = torch.bfloat16, copy.deepcopy(network).to(torch.bfloat16)
        module = SquareTower(network, tower.pixels, dtype).eval().to(self.device)
        if self.device.startswith("cuda"):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module
