"""Frozen random features: the same numbers on every machine and with every version, so that they need not be saved."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=2)
def random_map(hidden: int, d: int, seed: int) -> Tensor:
    """A random linear map, uniform between plus and minus one over the root of the width.

    Made of the raw stream of numpy's PCG64, which is promised to stay as it is; streams of drawn numbers are not.

    Args:
        hidden: rows.
        d: width of what is mapped.
        seed: of the stream.

    Returns:
        (hidden, d) float32, shared: not to be changed.

    >>> random_map(2, 3, seed=0)
    tensor([[ 0.1581, -0.2658, -0.5300],
            [-0.5583,  0.3617,  0.4766]])
    """
    raw = np.random.PCG64(seed).random_raw(hidden * d).reshape(hidden, d)
    raw >>= np.uint64(40)  # 24 bits are exact in float32
    between = raw.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return torch.from_numpy(between * np.float32(d**-0.5))
