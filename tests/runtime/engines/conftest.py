"""Towers to convert: a transformer and one of convolutions, both small. Converted once a session."""

import numpy as np
import open_clip
import pytest
import torch

from clipadapter.runtime.engines import Tower, create_backend
from clipadapter.utils.pixels import PixelSpec

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}


@pytest.fixture(scope="session")
def squares():
    """A function that makes pictures (n, s, s, 3) with smooth and sharp parts, each another."""

    def make(n: int, size: int, seed: int = 0) -> np.ndarray:
        stream = np.random.default_rng(seed)
        y, x = np.mgrid[:size, :size] / size
        fx, fy, phase = stream.uniform(1, 9, (3, n, 1, 1, 3))
        waves = np.sin(fx * x[..., None] + phase) * np.cos(fy * y[..., None] - phase) * 110 + 128
        edges = stream.uniform(0.2, 0.8, (n, 1, 1, 3)) < x[..., None]
        return np.where(edges, 255 - waves, waves).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def towers():
    """Towers by name, with random weights: that of a CLIP with two layers, and nine convolutions."""
    pixels = PixelSpec(32, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = open_clip.CLIP(32, VISION, TEXT).visual
        layers = [torch.nn.Conv2d(3, 3, 3) for _ in range(9)]
        convolutions = torch.nn.Sequential(*layers, torch.nn.Flatten())
    networks = {"tiny": (32, transformer), "convolutions": (3 * (32 - 2 * 9) ** 2, convolutions)}
    return {
        name: Tower(name, str(i) * 32, dim, pixels, module.eval().requires_grad_(False))
        for i, (name, (dim, module)) in enumerate(networks.items())
    }


@pytest.fixture(scope="session")
def tiny(towers):
    """The transformer."""
    return towers["tiny"]


@pytest.fixture(scope="session")
def runner(towers, squares):
    """A function that makes a tower ready, each once a session."""
    kept = {}

    def get(name: str, backend: str, precision: str):
        key = name, backend, precision
        if key not in kept:
            tower = towers[name]
            calibration = squares(8, tower.pixels.size, seed=1) if precision == "int8" else None
            kept[key] = create_backend(backend).prepare(tower, precision, calibration)
        return kept[key]

    return get


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """A cache folder that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "clipadapter" / "backends"
