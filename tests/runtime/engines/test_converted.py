"""Converted towers on disk: kept, built once, built anew when damaged, and opened without torch."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from clipadapter.errors import StoreError
from clipadapter.runtime.engines import backend_info, calibration_digest, create_backend
from clipadapter.runtime.engines.base import build_in_cache, read_cache_facts

CONVERTING = ["onnxruntime", "openvino"]

SLOW = """
import os, sys, time
from pathlib import Path
from clipadapter.runtime.engines.base import build_in_cache

def convert(folder):
    Path(sys.argv[2]).open("a").write("begun\\n")
    (folder / "tower").write_text("half")
    time.sleep(float(sys.argv[3]))
    (folder / "tower").write_text("whole")

build_in_cache(Path(sys.argv[1]), convert, {"by": "a test"})
"""
"""A process that converts slowly: folder, log of conversions, seconds."""

WITHOUT_TORCH = """
import sys
from pathlib import Path
import numpy as np
from clipadapter.runtime.engines import create_backend

folder, *towers = sys.argv[1:]
squares = np.load(f"{folder}/squares.npy")
for tower in towers:
    backend, precision, place = tower.split(" ", 2)
    np.save(f"{folder}/{backend}.npy", create_backend(backend).load(Path(place), precision)(squares))
assert "torch" not in sys.modules, "torch was loaded"
"""


def slow(place, log, seconds):
    return subprocess.Popen([sys.executable, "-c", SLOW, str(place), str(log), str(seconds)])


def wait_for(log):
    end = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < end, "nothing was begun"
        time.sleep(0.02)


def never(folder):
    raise AssertionError("converted again")


@pytest.mark.parametrize("backend", CONVERTING)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_tower_is_converted_once_and_again_if_its_files_are_damaged(
    backend, precision, towers, squares, no_cache, monkeypatch
):
    tower, made, calibration = towers["convolutions"], create_backend(backend), squares(4, 32)

    def features(given=calibration):
        return create_backend(backend).prepare(tower, precision, given)(squares(3, 32))

    assert not made.is_ready(tower.fingerprint, precision, calibration)
    first = features()
    assert made.is_ready(tower.fingerprint, precision, calibration)
    place = made.cache_folder(tower.fingerprint, precision, calibration_digest(calibration))
    known = json.loads((place / "facts.json").read_text())
    assert known["encoder"] == tower.name
    assert {name.partition(".")[0] for name in known["files"]} == {"tower"}
    assert made.is_convolutional(place) and " " not in place.name
    assert not [path for path in no_cache.iterdir() if path.is_dir() and path.name.startswith(".")]
    if precision == "fp32":
        largest = max(place.glob("tower.*"), key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:-100])
        assert not made.is_ready(tower.fingerprint, precision)
        np.testing.assert_array_equal(features(), first)  # the same sums in the same order
        assert made.is_ready(tower.fingerprint, precision)
    monkeypatch.setattr(type(made), "_convert", lambda *_: never(None))
    np.testing.assert_array_equal(features(calibration_digest(calibration)), first)  # the same sums in the same order


def test_places_differ_by_what_shapes_the_features():
    cls = backend_info("openvino").cls
    shapes = (("a", "fp32"), ("b", "fp32"), ("a", "int8", "1"), ("a", "int8", "2"))
    places = {cls.cache_folder(*shape) for shape in shapes}
    assert len(places) == 4
    assert cls.cache_folder("a", "bf16") == cls.cache_folder("a", "fp32")
    assert backend_info("onnxruntime").cls.cache_folder("a", "fp32") not in places


def test_facts_that_are_no_facts(tmp_path):
    for text in ("", "[]", "{}", '{"files": 3}', '{"format": 0, "files": {}}'):
        (tmp_path / "facts.json").write_text(text)
        assert read_cache_facts(tmp_path) is None


def test_killed_in_the_middle_it_is_built_anew(tmp_path):
    place, log = tmp_path / "backends" / "one", tmp_path / "log"
    process = slow(place, log, 60)
    wait_for(log)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert list(place.parent.glob(".one.*.part"))
    assert read_cache_facts(place) is None
    build_in_cache(place, lambda folder: (folder / "tower").write_text("mine") and None, {})
    assert (place / "tower").read_text() == "mine"
    assert not list(place.parent.glob(".one.*.part"))


def test_two_at_once_build_once(tmp_path):
    place, log = tmp_path / "backends" / "one", tmp_path / "log"
    both = [slow(place, log, 1), slow(place, log, 1)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert log.read_text() == "begun\n"
    assert (place / "tower").read_text() == "whole"


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    place = tmp_path / "backends" / "one"

    def fail(folder):
        (folder / "tower").write_text("half")
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        build_in_cache(place, fail, {})
    assert not [path for path in place.parent.iterdir() if path.is_dir()]


def test_a_folder_that_can_not_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "clipadapter").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(StoreError, match="set XDG_CACHE_HOME to another folder"):
        create_backend("openvino").prepare(tiny, "fp32")


def test_a_tower_is_opened_without_torch(tiny, runner, squares, tmp_path):
    kinds, towers, pictures = {"onnxruntime": "fp32", "openvino": "bf16"}, [], squares(3, 32)
    np.save(tmp_path / "squares.npy", pictures)
    for backend, precision in kinds.items():
        runner("tiny", backend, precision)
        cls = backend_info(backend).cls
        place = cls.cache_folder(tiny.fingerprint, precision)
        assert not cls.is_convolutional(place)
        towers.append(f"{backend} {precision} {place}")
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(tmp_path), *towers], check=True, timeout=120)
    for backend, precision in kinds.items():
        wanted = runner("tiny", backend, precision)(pictures)
        np.testing.assert_allclose(np.load(tmp_path / f"{backend}.npy"), wanted, rtol=0.01, atol=0.01)


TELL = """
import socket, sys
from pathlib import Path
tried = []
socket.socket.connect = lambda self, address: tried.append(address)
socket.getaddrinfo = lambda *args, **kwargs: tried.append(args) or []
import numpy as np, torch
from clipadapter.runtime.engines import Tower, create_backend
from clipadapter.utils.pixels import PixelSpec
squares = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()).eval().requires_grad_(False)
tower = Tower("small", "0" * 32, 144, PixelSpec(8, (0.5,) * 3, (0.5,) * 3), network)
create_backend("openvino").prepare(tower, "int8", squares)(squares)
import threading
for thread in threading.enumerate():
    if thread is not threading.current_thread() and type(thread).__name__ != "TMonitor":  # of tqdm, which never ends
        thread.join(5)
assert not tried, tried
assert not (Path.home() / "intel").exists()
import os
assert "CI" not in os.environ and "NNCF_CI" not in os.environ
"""


@pytest.mark.slow
def test_nothing_is_told_to_the_makers_of_a_backend(tmp_path):
    switches = ("CI", "NNCF_CI", "TF_BUILD", "JENKINS_URL")
    environment = {name: value for name, value in os.environ.items() if name not in switches}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", TELL], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


def test_openvino_takes_up_many_and_goes_back_to_few(runner, squares):
    run, pictures = runner("tiny", "openvino", "fp32"), squares(40, 32)
    few = run(pictures[:3])
    many = run(pictures)
    np.testing.assert_allclose(many[:3], few, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(run(pictures[:3]), few)  # the same sums in the same order
    np.testing.assert_array_equal(run(pictures), many)  # the same sums in the same order
