"""Pictures to encode, the sizes that Pillow scales them to, and a cache of the hub."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ..tuners import coloured_squares


@pytest.fixture
def picture():
    """A function that makes a picture with smooth and sharp parts, the same for the same size."""
    return coloured_squares.picture


@pytest.fixture
def resized_to(monkeypatch):
    """The sizes of all later calls of ``Image.resize``."""
    sizes = []
    resize = Image.Image.resize

    def record(self, size, *args, **kwargs):
        sizes.append(size)
        return resize(self, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", record)
    return sizes


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A function that puts the files of a folder, or none, into an empty cache of the hub, as a commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(repo, folder=None, commit="a" * 40, is_main=True):
        place = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        snapshot = place / "snapshots" / commit
        snapshot.mkdir(parents=True)
        if folder is not None:
            shutil.copytree(folder, snapshot, dirs_exist_ok=True)
        if is_main:
            (place / "refs").mkdir(exist_ok=True)
            (place / "refs" / "main").write_text(commit)
        return snapshot

    return put


def weights_writer(folder, state):
    """A function that writes weights, changed or not, into a file of the folder."""

    def write(name, change=lambda state: state):
        path, content = folder / name, change(dict(state))
        save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
        return path

    return write
