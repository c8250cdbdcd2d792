import numpy as np
import pytest
from PIL import Image

from clipadapter.encoders import create_encoder


@pytest.fixture(scope="session")
def toy():
    return create_encoder("toy")


@pytest.fixture
def picture_folder(tmp_path):
    """Function that writes n different PNG files and gives their paths in order."""

    def write(n, seed=0):
        folder = tmp_path / "pictures"
        folder.mkdir(exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (n, 12, 16, 3), dtype=np.uint8)
        paths = [folder / f"{i:03}.png" for i in range(n)]
        for path, array in zip(paths, pixels, strict=True):
            Image.fromarray(array).save(path)
        return paths

    return write


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Paths of 12 noisy pictures in two colours."""
    folder, rng, paths = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for i in range(12):
        values = np.array(Image.new("RGB", (70, 60), ("red", "blue")[i % 2]), int) + rng.integers(-60, 60, (60, 70, 3))
        paths.append(folder / f"{i}.png")
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths
