import io

import numpy as np
import pytest
from PIL import Image

from clipadapter.studio import Project
from clipadapter.studio.actions import Tab
from clipadapter.studio.panels import Panels
from clipadapter.studio.pictures import Upload
from clipadapter.studio.session import Session


def noisy(colour, seed, size=12):
    """An upload of a noisy picture of a colour; no two seeds give the same one."""
    rng = np.random.default_rng(seed)
    pixels = np.array(Image.new("RGB", (size, size), colour), np.int64) + rng.integers(-60, 60, (size, size, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return Upload(f"{colour}.png", file.getvalue())


def settle(session):
    session.notify_change()
    assert session.wait_until_idle(30), session.state
    return session.state


def fill(session, count=2):
    """The classes red and blue, with so many pictures each."""
    for name in ("red", "blue"):
        if name not in session.project.contents.classes:
            session.project.add_class(name)
        session.project.add_pictures(name, [noisy(name, i) for i in range(count)])
    return settle(session)


def pending(session):
    """The keys of its queue that have no label yet, as the page shows them."""
    return tuple(one.key for one in Panels(session)._values(Tab(), session.state, session.project.contents)["queue"])


@pytest.fixture
def open_session(tmp_path):
    """A function that opens the project with a session, and closes the one before; the last is closed at the end."""
    opened = []

    def open_one(head="auto", quality="fast", encoder="toy", **params):
        for session in opened:
            session.close()
        opened[:] = [Session(Project(tmp_path / "p"), encoder, head, quality, **{"cache": None, **params})]
        return opened[0]

    yield open_one
    for session in opened:
        session.close()


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
