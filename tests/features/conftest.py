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
