"""Errors and crashes of the child process that opens a file are reported, and do not reach this process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from clipadapter.errors import ArtifactError
from clipadapter.pixels import PixelSpec
from clipadapter.runtime import ExportMetadata, isolated
from clipadapter.runtime.isolated import IsolatedOpener
from clipadapter.uncertainty import Uncertainty

pytestmark = pytest.mark.skipif(os.name == "nt", reason="children are shell scripts")


@pytest.fixture
def child(tmp_path, monkeypatch):
    """A function that makes a shell script the child."""

    def put(text):
        script = tmp_path / "child"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(isolated.sys, "executable", str(script))
        return IsolatedOpener(timeout_seconds=60)

    return put


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -SEGV $$", "m.onnx ended the process that opened it by SIGSEGV: export the model again"),
        ("kill -ABRT $$", "by SIGABRT"),
        ("kill -ALRM $$", "was not open after 60 seconds"),
        ("exit 3", "ended the process that opened it with status 3"),
        ("echo '{\"other\": 1}'; exit 1", "with status 1"),
        ('echo noise; echo \'{"error": "it is damaged"}\'; exit 1', "^it is damaged$"),
    ],
)
def test_the_end_of_the_child_is_reported(script, words, child, tmp_path):
    with pytest.raises(ArtifactError, match=words):
        child(script).try_file(tmp_path / "m.onnx")


def test_a_child_that_ends_well_raises_nothing(child, tmp_path):
    child("exit 0").try_file(tmp_path / "m.onnx")


def test_a_child_that_hangs_is_killed_after_its_time(child, tmp_path):
    opener = child("exec sleep 600")
    opener._timeout_seconds = 0.05
    with pytest.raises(ArtifactError, match=r"was not open after 0\.05 seconds"):
        opener.try_file(tmp_path / "m.onnx")


def test_stopping_ends_the_child_and_starts_no_other(child, tmp_path):
    opener = child(f"touch {tmp_path}/begun; exec sleep 600")
    errors = []

    def try_file():
        try:
            opener.try_file(tmp_path / "m.onnx")
        except ArtifactError as error:
            errors.append(str(error))

    thread = threading.Thread(target=try_file)
    thread.start()
    while opener._process is None:
        thread.join(0.001)
    opener.stop()
    thread.join(30)
    assert not thread.is_alive()
    try_file()
    assert "SIGKILL" in errors[0] and "the server is ending" in errors[1]


def test_errors_name_the_path_as_it_was_given(write, tmp_path, monkeypatch):
    write("no metadata", "m.onnx")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="metadata of the file are damaged"):
        IsolatedOpener().try_file(isolated.Path("m.onnx"))


def test_a_sound_file_opens_in_the_child_without_what_only_training_needs(write):
    path = write(
        ExportMetadata(("red", "green", "blue"), PixelSpec(4, (0.0,) * 3, (1.0,) * 3), Uncertainty()).to_json()
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
isolated._limit_resources(isolated.Path("x"), 0.05)
while True: pass
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGALRM
