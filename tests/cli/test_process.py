"""What only a process of its own can show: the entry point, start-up time, signals, pipes."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def test_help_is_quick(start):
    """Less than 0.3 s of processor time; one of three will do, since another process may disturb one."""

    def seconds():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = start("--help")
        stdout, _ = process.communicate()
        assert process.returncode == 0 and "predict" in stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 0.3 for _ in range(3))


def test_no_help_imports_what_is_heavy():
    code = """
import sys
from click.testing import CliRunner
from clipadapter.cli.app import app
runner = CliRunner()
for args in [[], *([name] for name in app.list_commands(None))]:
    assert runner.invoke(app, [*args, "--help"]).exit_code == 0, args
heavy = {"torch", "numpy", "sklearn", "PIL", "open_clip", "matplotlib", "pydantic", "fastapi", "uvicorn"}
print(*heavy & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_command_spends_no_time_on_a_search_for_garbage():
    """With Python's own settings, searches were a quarter of the time of commands that import torch."""
    code = """
import atexit, gc, sys
from clipadapter.cli.app import main
atexit.register(lambda: print(gc.get_stats()[-1]["collections"], file=sys.stderr))
sys.argv = ["clipadapter", "heads"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stderr) == 0


def test_the_end_of_a_command_is_silent_and_runs_exit_handlers_once_but_frees_no_modules():
    """Extension modules, such as triton's, report as a leak what is not freed by the time that modules are."""
    code = """
import atexit, sys, threading, time, weakref
from clipadapter.cli.app import main
class Model:
    def __del__(self):
        print("freed", flush=True)
model = Model()
weakref.finalize(model, print, "finalizer")
atexit.register(print, "handler")
threading.Thread(target=lambda: (threading.main_thread().join(), print("thread", flush=True))).start()
import torchvision
sys.argv = ["clipadapter", "scna"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.splitlines() == ["thread", "handler", "finalizer"]
    assert "scna" in done.stderr.splitlines()[-1] and "leak" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_one_line():
    code = "from clipadapter.cli.app import main; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code, "heads"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: the output can't be written: No space left on device\n"


def test_a_name_that_the_terminal_cannot_show_ends_nothing(tmp_path, monkeypatch, start):
    (tmp_path / "data" / "żaba").mkdir(parents=True)
    (tmp_path / "data" / "żaba" / "ą.jpg").touch()
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    process = start("scan", tmp_path / "data")
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert r"\u0105.jpg: file is empty" in stdout


@pytest.fixture(scope="module")
def exported(model, run, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert run("export", model, "--out", path).exit_code == 0
    return path


def test_pictures_are_sorted_where_nothing_is_installed_that_trains(exported, squares, tmp_path):
    code = """
import sys
from clipadapter.errors import TRAIN
sys.modules.update(dict.fromkeys(TRAIN))
from clipadapter.cli.app import main
main()
"""
    command = [sys.executable, "-c", code, "predict", exported, squares / "red" / "0.png", "--sort-into", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "red" / "0.png").is_file()


@pytest.fixture
def predict(start, squares):
    """A function that starts a process of predict, which answers each line of its input when it comes."""

    def answering(model):
        process = start("predict", model, "-", "--json")
        for label in ("red", "blue"):
            process.stdin.write(f"{squares / label / '0.png'}\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["label"] == label
        return process

    return answering


@pytest.mark.slow
def test_ctrl_c_ends_with_one_line(predict, model):
    process = predict(model)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130
    assert stdout == ""
    kept = "features that were computed are in the feature store, and the same command continues from there"
    assert stderr == f"\ninterrupted: {kept}\n"


def test_a_reader_that_leaves_is_no_error(predict, exported, squares):
    """An exported model, which starts sooner than a saved one."""
    process = predict(exported)
    process.stdout.close()
    process.stdin.write(f"{squares / 'red' / '0.png'}\n" * 4)
    process.stdin.close()
    assert process.wait() in (0, 1)
    assert process.stderr.read() == ""
