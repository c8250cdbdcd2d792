"""The backend that is always there."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipadapter.backends._base import Backend, Calibration, Runner, Tower
from clipadapter.backends._registry import register_backend
from clipadapter.parallel import run_in_batches

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


@register_backend("torch")
class TorchBackend(Backend):
    """PyTorch, on the CPU or a GPU; on a GPU weights are laid channels-last and copies overlap with work."""

    precisions = ("fp32", "bf16")
    devices = ("cpu", "cuda", "mps", "xpu")

    def run(self, tower: Tower, precision: str, calibration: Calibration | None = None) -> Runner:
        """See `Backend.run`; nothing is converted, and the module is asked for when squares come."""
        import torch

        self.check(precision)
        on_gpu, lock = self.device.startswith("cuda"), threading.Lock()
        kept: list[Module] = []

        def run(squares: NDArray[np.uint8]) -> NDArray[np.float32]:
            with lock:
                if not kept:
                    kept.append(self._laid(tower, precision))
            batch: Tensor = torch.from_numpy(squares)
            if on_gpu:
                batch = batch.pin_memory()
            with torch.inference_mode():
                features = run_in_batches(kept[0], kept[0], batch.to(self.device, non_blocking=True)).cpu()
            found: NDArray[np.float32] = features.numpy()
            return found

        return run

    def _laid(self, tower: Tower, precision: str) -> Module:
        """The tower as it runs on the device."""
        import torch

        from clipadapter.backends._modules import Uint8Tower

        dtype = torch.float32
        if precision == "bf16":
            dtype = torch.bfloat16
            tower = replace(tower, network=copy.deepcopy(tower.module).to(dtype))
        module = Uint8Tower(tower, dtype).eval().to(self.device)
        if self.device.startswith("cuda"):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return module
