"""Errors and crashes of the child process that opens a file are reported, and do not reach this process."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clipadapter.errors import ArtifactError
from clipadapter.runtime import ExportMetadata, isolated
from clipadapter.runtime.isolated import try_in_child
from clipadapter.uncertainty import Uncertainty
from clipadapter.utils.pixels import PixelSpec

pytestmark = pytest.mark.skipif(os.name == "nt", reason="children are shell scripts")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -SEGV $$", "m.onnx ended the process that opened it by SIGSEGV: export the model again"),
        ("kill -ABRT $$", "by SIGABRT"),
        ("exit 3", "ended the process that opened it with status 3"),
        ("echo words; exit 1", "with status 1"),
        ("echo noise; echo it is damaged; exit 3", "^it is damaged$"),
        ("exec sleep 600", "was not open after 0.5 seconds"),
        ("exit 0", None),
    ],
)
def test_the_end_of_the_child_is_reported(script, words, tmp_path, monkeypatch):
    child = tmp_path / "child"
    child.write_text(f"#!/bin/sh\n{script}\n")
    child.chmod(0o755)
    monkeypatch.setattr(isolated.sys, "executable", str(child))
    timeout = 0.5 if "sleep" in script else 60
    if words is None:
        try_in_child(tmp_path / "m.onnx", timeout_seconds=timeout)
    else:
        with pytest.raises(ArtifactError, match=words):
            try_in_child(tmp_path / "m.onnx", timeout_seconds=timeout)


def test_a_child_that_hangs_ends_when_the_children_are_stopped(tmp_path, monkeypatch):
    child = tmp_path / "child"
    child.write_text("#!/bin/sh\nexec sleep 600\n")
    child.chmod(0o755)
    monkeypatch.setattr(isolated.sys, "executable", str(child))
    with ThreadPoolExecutor() as pool:
        trial = pool.submit(try_in_child, tmp_path / "m.onnx")
        while not trial.done() and not isolated._children:
            pass
        isolated.stop_children()
        with pytest.raises(ArtifactError, match="by SIGKILL"):
            trial.result()


def test_errors_name_the_path_as_it_was_given_whatever_the_encoding_of_streams(write, tmp_path, monkeypatch):
    write(None, "modèle.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with pytest.raises(ArtifactError, match="^modèle.onnx was not written by 'clipadapter export'"):
        try_in_child(Path("modèle.onnx"))


def test_a_sound_file_opens_in_the_child_without_what_only_training_needs(write):
    path = write(
        ExportMetadata(("red", "green", "blue"), (PixelSpec(4, (0.0,) * 3, (1.0,) * 3),), Uncertainty()).to_json()
    )
    code = """
import sys
from clipadapter.errors import TRAIN
from clipadapter.runtime.isolated import main
assert main(sys.argv[1], "onnxruntime", "60") == 0
assert not TRAIN & {name.partition(".")[0] for name in sys.modules}, sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_child_ends_itself_after_its_time():
    code = """
from clipadapter.runtime import isolated
isolated.Predictor = lambda *_, **__: [1 for _ in iter(int, 1)]  # never ends
isolated.main("x", "auto", "0.05")
"""
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 1
