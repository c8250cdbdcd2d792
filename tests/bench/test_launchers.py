import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clipadapter.bench import read_runs, run_suite
from clipadapter.bench.launcher import Launcher, WorkerDiedError

from ..suite_text import parse_suite

TEST_FOLDER = str(Path(__file__).parent)
sys.path.append(TEST_FOLDER)  # worker processes inherit it
import launcher_jobs  # noqa: E402

CONNECT = socket.socket.connect
"""Taken before the tests' seal: a server of forks is reached through a socket."""
SUITE = 'title = "t"\nheads = ["zero-shot", "prototype", "tip-adapter"]\nshots = [1, 2]\nseeds = [1, 2]'


def run(launcher, function, tasks):
    """Results by task."""
    results = dict(launcher.run(function, tasks))
    return {task: results[i] for i, task in enumerate(tasks)}


def until(condition, seconds):
    """Wait until it holds; whether it does."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def numbers(folder):
    """Numbers of the processes that told theirs."""
    return [int(path.name) for path in folder.iterdir()]


def alive(pid):
    try:
        os.kill(pid, 0)
        has_proc = Path("/proc/self/stat").exists()
        return not has_proc or Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):  # the file may vanish while it is read
        return False


@pytest.fixture
def local():
    """Two workers that are spawned, as in use. Each one imports torch, which takes seconds."""
    return Launcher(workers=2)


@pytest.fixture
def forked(local, monkeypatch):
    """The same launcher, with workers that are forked from a server that has imported all that they need."""
    multiprocessing.set_forkserver_preload(["torch", Launcher.__module__, "launcher_jobs"])
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(socket.socket, "connect", CONNECT)  # the server is reached through a socket file
    return local


def test_one_worker_is_this_process():
    results = run(Launcher(workers=1), lambda text: [text, str(os.getpid())], ["a", "b"])
    assert list(results.values()) == [["a", str(os.getpid())], ["b", str(os.getpid())]]
    with pytest.raises(LookupError, match="no a"):
        run(Launcher(workers=1), launcher_jobs.fail, ["a"])
    assert list(Launcher(workers=2).run(launcher_jobs.upper, [])) == []


def test_workers_are_as_many_as_memory_lets(monkeypatch):
    module = sys.modules[Launcher.__module__]
    monkeypatch.setattr(module, "count_cores", lambda: 8)
    monkeypatch.setattr(module, "free_memory", lambda: 5 << 30)
    # 80 % of 5 GiB, 1 GiB for the features and 700 MiB beside them: two fit.
    assert Launcher(memory=1 << 30).count_workers(20) == 2
    assert Launcher(memory=1 << 40).count_workers(20) == 1
    assert Launcher(workers=3, memory=1 << 40).count_workers(20) == 3
    assert Launcher(workers=3).count_workers(2) == 2


@pytest.mark.slow
def test_killed_workers_lose_nothing(forked, tmp_path):
    """A worker that is killed once loses nothing, and a job that kills its worker each time fails alone."""
    once, bad = f"once|{tmp_path / 'mark'}", f"bad|{tmp_path}"
    results = run(forked, launcher_jobs.kill, [once, bad, "a", "b"])
    assert (tmp_path / "mark").exists()
    assert {name: results[task] for name, task in (("once", once), ("a", "a"), ("b", "b"))} == {
        "once": ["once"],
        "a": ["a"],
        "b": ["b"],
    }
    # The local launcher can't tell who died, so that one of the three may have been its neighbour's death.
    assert (tmp_path / "deaths").read_text() in ("xx", "xxx")
    assert isinstance(results[bad], WorkerDiedError) and "died 3 times" in str(results[bad])


@pytest.mark.slow
def test_workers_continue_while_a_result_is_processed_until_the_iterator_is_closed(forked, tmp_path):
    results = forked.run(launcher_jobs.linger, [f"{tmp_path}|first", *[str(tmp_path)] * 3])
    assert next(results) == (0, ["first"])
    assert until(lambda: len(numbers(tmp_path)) >= 2, 120)
    results.close()
    assert until(lambda: not any(map(alive, numbers(tmp_path))), 60)
    assert until(lambda: not multiprocessing.active_children(), 60)


@pytest.mark.slow
def test_each_worker_sees_a_gpu_of_its_own_and_has_no_semaphore_to_leave_behind(forked, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    forked.device = "cuda"
    seen = run(forked, launcher_jobs.see_gpu, [f"{tmp_path}|a", f"{tmp_path}|b"])
    assert sorted(seen.values()) == [["4", "RLock"], ["6", "RLock"]]


@pytest.mark.slow
def test_workers_end_at_once_after_a_study_and_after_an_exception_that_reaches_the_caller(forked):
    with pytest.raises(LookupError, match="no a"):
        run(forked, launcher_jobs.fail, ["a", "a"])
    assert until(lambda: not multiprocessing.active_children(), 60)
    start = time.monotonic()
    run(forked, launcher_jobs.slow_to_leave, ["a", "b", "c"])
    assert time.monotonic() - start < 240
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_workers_of_a_killed_parent_leave(tmp_path, monkeypatch):
    code = (
        "import launcher_jobs, sys\nfrom clipadapter.bench.launcher import Launcher\n"
        "if __name__ == '__main__':\n"
        "    list(Launcher(workers=2).run(launcher_jobs.linger, [sys.argv[1]] * 2))\n"
    )
    (tmp_path / "parent.py").write_text(code)
    (tmp_path / "torch.py").write_text("def set_num_threads(count): pass")  # in place of torch, whose import takes long
    (tmp_path / "workers").mkdir()
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "workers")]
    monkeypatch.setenv("PYTHONPATH", TEST_FOLDER, prepend=os.pathsep)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as parent:
        try:
            assert until(lambda: len(numbers(tmp_path / "workers")) == 2, 240)
        finally:
            parent.send_signal(signal.SIGKILL)
    assert until(lambda: not any(map(alive, numbers(tmp_path / "workers"))), 60)


def figures(source, out, launcher):
    """Metrics of each run by its key."""
    result = run_suite(parse_suite("own", SUITE), [source], {}, out, launcher)
    assert (result.n_made, result.n_failed) == (12, 0)
    return {one.key: one.metrics for one in read_runs(out / "runs.jsonl")}


@pytest.mark.slow
def test_two_workers_make_the_records_that_one_makes(source, local, tmp_path):
    expected = figures(source, tmp_path / "one", Launcher(workers=1))
    assert len(expected) == 12
    assert figures(source, tmp_path / "two", local) == expected
