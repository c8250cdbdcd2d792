"""An export that is killed before any file operation leaves the older file or the new one, and nothing for good.

Children are forked from the test's process, where torch is loaded already. Converters and backends are stood in for,
since their threads do not survive a fork. `CLIPADAPTER_ATTACKS` times 3 kills are tried for each format, at most one
for each operation.
"""

import itertools
import os
import random
import signal
import warnings
from dataclasses import replace

import numpy as np
import pytest

from clipadapter.classifier import FewShotClassifier
from clipadapter.runtime.engines.formats import check_file, companion_files, get_format, load_formats
from clipadapter.runtime.export import export_model, exporter

from .file_operations import Operations, status_of_child

KILLS = 3 * int(os.environ.get("CLIPADAPTER_ATTACKS", "1"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def convert_without_library(graph, path, rows):
    """Writes a few bytes in place of a graph and its companions, other ones each time."""
    numbers = itertools.count(1)

    def write(entries):
        folder = path.parent / str(next(numbers))
        folder.mkdir()
        files = [*companion_files(folder / path.name), folder / path.name]
        for file in files:
            file.write_bytes(os.urandom(1000))
        return files

    return write


@pytest.fixture(scope="module")
def model():
    pictures = [np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255])]
    return FewShotClassifier("toy", "prototype", cache=None).fit(pictures, ["red", "blue"])


@pytest.fixture(params=load_formats())
def export(request, model, tmp_path, monkeypatch):
    """A function that exports into the test's folder, and the file that is opened."""
    stand_in = replace(get_format(request.param), convert=convert_without_library, modules=())
    monkeypatch.setattr(exporter, "get_format", lambda name: stand_in if name == request.param else get_format(name))
    figures = {"n": 2, "agreement": 1.0, "cosine_least": 1.0, "logits": 0.0, "probabilities": 0.0}
    monkeypatch.setattr(exporter, "_check_file", lambda *_: (figures, {}))
    path = tmp_path / "exports" / f"model{stand_in.suffix}"
    path.parent.mkdir()
    return lambda: export_model(model, path, format=request.param), path


def run_until(kill_before, act, folder):
    """Act in a child that is killed before its n-th operation on files below the folder.

    Returns:
        How many operations there were; None if it was killed.
    """

    def run():
        operations = Operations(folder)
        with operations.killed(kill_before):
            act()
        (folder.parent / "count").write_text(str(operations.count))
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads: none of theirs is needed in the child
        status = status_of_child(run)
    assert status in (0, -signal.SIGKILL)
    return int((folder.parent / "count").read_text()) if status == 0 else None


def files_at(target):
    return [target, *companion_files(target)]


@pytest.mark.parametrize("exists", [True, False], ids=["over an older file", "into an empty folder"])
def test_a_kill_before_any_file_operation_leaves_a_whole_export_or_none(exists, export):
    act, target = export
    folder = target.parent
    older = []
    if exists:
        act()
        older = [path.read_bytes() for path in files_at(target)]
    points = run_until(-1, act, folder)
    assert points > 5
    tried = list(range(points)) if points <= KILLS else sorted(random.Random(0).sample(range(points), KILLS))
    for point in tried:
        for path in folder.iterdir():
            path.unlink()
        if exists:
            for path, data in zip(files_at(target), older, strict=True):
                path.write_bytes(data)
        assert run_until(point, act, folder) is None
        if target.exists():
            assert check_file(target) is not None, point  # raises if graph and weights are not of one export
        elif not companion_files(target):
            assert not exists, point
        for path in (*folder.rglob("*"), *folder.iterdir()):
            os.utime(path, (0, 0))  # what is left is removed when it is a day old
        act()
        assert check_file(target) is not None
        assert {path.name for path in folder.iterdir()} == {path.name for path in files_at(target)}, point
