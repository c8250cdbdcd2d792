import io

import pytest
from PIL import Image

from clipadapter.studio import Project
from clipadapter.studio.pictures import Upload


@pytest.fixture(scope="session")
def png():
    """A function that gives the bytes of a picture of one colour; another number is another picture."""

    def make(colour, number=0, kind="PNG"):
        file = io.BytesIO()
        Image.new("RGB", (20 + number, 20), colour).save(file, kind)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def upload(png):
    """A function that gives an upload of a picture of one colour."""

    def make(colour, number=0, name="picture.png"):
        return Upload(name, png(colour, number))

    return make


@pytest.fixture
def project(tmp_path):
    """An empty project."""
    with Project(tmp_path / "project") as opened:
        yield opened


@pytest.fixture
def tree():
    """A function that gives the files below a folder and their bytes, without the studio's own."""

    def read(root):
        files = (path for path in root.rglob("*") if path.is_file() and ".studio" not in path.parts)
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    return read
