"""SimCLR's augmentation, drawn from a stream that belongs to one picture, epoch and view."""

from __future__ import annotations

import math
import random
from hashlib import blake2b

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from clipadapter.encoders.simclr_network import MEAN, STD

SMALLEST = 0.08
RATIO = (3 / 4, 4 / 3)
JITTER, HUE = 0.8, 0.2
P_JITTER, P_GREY, P_BLUR, P_FLIP = 0.8, 0.2, 0.5, 0.5
SIGMA = (0.1, 2.0)


def stream(*facts: object) -> random.Random:
    """A random stream that depends on nothing but these facts.

    >>> stream(0, "a").random() == stream(0, "a").random() != stream(1, "a").random()
    True
    """
    digest = blake2b(repr(facts).encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))


def augmented(image: Tensor, size: int, rng: random.Random) -> Tensor:
    """One view of a picture (Chen et al. 2020, appendix A): crop, flip, colours, grey, blur.

    Args:
        image: (3, h, w) uint8.
        size: side of the view.
        rng: what it is drawn from.

    Returns:
        (3, size, size) float32, less mean, by deviation.

    >>> augmented(torch.zeros(3, 20, 30, dtype=torch.uint8), 16, stream(0)).shape
    torch.Size([3, 16, 16])
    """
    view: Tensor = F.resized_crop(image, *_box(rng, *image.shape[1:]), size=[size, size], antialias=True)
    view = view.float() / 255
    if rng.random() < P_FLIP:
        view = F.horizontal_flip(view)
    if rng.random() < P_JITTER:
        view = _jittered(view, rng)
    if rng.random() < P_GREY:
        view = F.rgb_to_grayscale(view, num_output_channels=3)
    if rng.random() < P_BLUR:
        kernel = 2 * (size // 20) + 1  # a tenth of the side, and odd
        view = F.gaussian_blur(view, [kernel, kernel], [_uniform(rng, *SIGMA)])
    view = F.normalize(view, list(MEAN), list(STD))
    return view.to(torch.float32)


def _box(rng: random.Random, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop."""
    area = height * width * _uniform(rng, SMALLEST, 1.0)
    aspect = math.exp(_uniform(rng, math.log(RATIO[0]), math.log(RATIO[1])))
    w = min(width, max(1, round(math.sqrt(area * aspect))))
    h = min(height, max(1, round(math.sqrt(area / aspect))))
    return int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w


def _jittered(view: Tensor, rng: random.Random) -> Tensor:
    """Brightness, contrast, saturation and hue, each changed by chance, in an order of chance."""
    changes = [
        (F.adjust_brightness, _uniform(rng, 1 - JITTER, 1 + JITTER)),
        (F.adjust_contrast, _uniform(rng, 1 - JITTER, 1 + JITTER)),
        (F.adjust_saturation, _uniform(rng, 1 - JITTER, 1 + JITTER)),
        (F.adjust_hue, _uniform(rng, -HUE, HUE)),
    ]
    # Only `random()` is promised to give the same numbers in every Python version: no shuffle.
    for _, i in sorted((rng.random(), i) for i in range(len(changes))):
        change, by = changes[i]
        view = change(view, by)
    return view


def _uniform(rng: random.Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()
