import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clipadapter.bench import FEATURES, RecordFolder, run_suite, save_bundle
from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.bundle_files import ARRAYS_FILE, FACTS_FILE
from clipadapter.bench.launchers import Job, create_launcher, list_launchers, register_launcher
from clipadapter.bench.launchers.base import LAUNCHERS
from clipadapter.bench.launchers.ray import get_bundle_folder, unpack_bundle
from clipadapter.bench.suite import parse_suite
from clipadapter.errors import InputError, MissingExtraError, UnknownNameError
from clipadapter.features import FeatureSet
from clipadapter.installation import install_command
from clipadapter.testing import toy_features

TEST_FOLDER = str(Path(__file__).parent)
sys.path.append(TEST_FOLDER)  # worker processes inherit it
import launcher_jobs  # noqa: E402

CONNECT = socket.socket.connect
"""Taken before the tests' seal: Ray and a server of forks are reached through sockets."""
SUITE = 'title = "t"\nheads = ["zero-shot", "prototype", "tip-adapter"]\nshots = [1, 2]\nseeds = [1, 2]'


def run(launcher, function, tasks):
    """Results by task."""
    results = list(launcher.run(function, [Job(i, task) for i, task in enumerate(tasks)]))
    assert sorted(one.job.number for one in results) == list(range(len(tasks)))
    return {one.job.task: one for one in results}


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
    return create_launcher("local", workers=2)


@pytest.fixture
def forked(local, monkeypatch):
    """The same launcher, with workers that are forked from a server that has imported all that they need."""
    multiprocessing.set_forkserver_preload([type(local).__module__, "launcher_jobs"])
    context = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(socket.socket, "connect", CONNECT)  # the server is reached through a socket file
    return local


def test_launchers_are_listed_and_a_typo_gets_a_hint():
    assert list_launchers() == ["local", "ray"]
    with pytest.raises(UnknownNameError, match="Did you mean 'local'"):
        create_launcher("locl")


@pytest.fixture
def narrow_launcher():
    """A registered launcher whose constructor takes no device."""

    class Narrow(type(create_launcher("local"))):
        def __init__(self, workers=None, memory=0):
            super().__init__(workers, memory)

    register_launcher("narrow")(Narrow)
    yield Narrow
    del LAUNCHERS._entries["narrow"]


def test_a_launcher_of_a_plug_in_that_takes_no_device_is_refused_with_what_it_must_take(narrow_launcher):
    with pytest.raises(
        InputError, match=r"'narrow': .*Narrow can't be created with workers, memory and device .*its con"
    ):
        create_launcher("narrow")


def test_one_worker_is_this_process():
    results = run(create_launcher("local", workers=1), lambda text: [text, str(os.getpid())], ["a", "b"])
    assert [one.result for one in results.values()] == [["a", str(os.getpid())], ["b", str(os.getpid())]]
    with pytest.raises(LookupError, match="no a"):
        run(create_launcher("local", workers=1), launcher_jobs.fail, ["a"])


def test_no_jobs_are_no_work():
    for name in list_launchers():
        assert list(create_launcher(name, workers=2).run(launcher_jobs.upper, [])) == []


def test_workers_are_as_many_as_memory_lets(monkeypatch):
    module = sys.modules[type(create_launcher("local")).__module__]
    monkeypatch.setattr(module, "count_cores", lambda: 8)
    monkeypatch.setattr(module, "free_memory", lambda: 5 << 30)
    # 80 % of 5 GiB, 1 GiB for the features and 700 MiB beside them: two fit.
    assert create_launcher("local", memory=1 << 30).count_workers(20) == 2
    assert create_launcher("local", memory=1 << 40).count_workers(20) == 1
    assert create_launcher("local", workers=3, memory=1 << 40).count_workers(20) == 3
    assert create_launcher("local", workers=3).count_workers(2) == 2


def check_deaths(launcher, folder):
    """A worker that is killed once loses nothing, and a job that kills its worker each time fails alone."""
    once, bad = f"once|{folder / 'mark'}", f"bad|{folder}"
    results = run(launcher, launcher_jobs.kill, [once, bad, "a", "b"])
    assert (folder / "mark").exists()
    assert {name: results[task].result for name, task in (("once", once), ("a", "a"), ("b", "b"))} == {
        "once": ["once"],
        "a": ["a"],
        "b": ["b"],
    }
    # The local launcher can't tell who died, so that one of the three may have been its neighbour's death.
    assert (folder / "deaths").read_text() in ("xx", "xxx")
    assert results[bad].result is None
    assert "died 3 times" in results[bad].error


def check_close(launcher, folder, busy):
    """Workers go on while an outcome is looked at, as many as are awaited here; closing the iterator ends them."""
    results = launcher.run(launcher_jobs.linger, [Job(0, f"{folder}|first"), *(Job(i, str(folder)) for i in (1, 2, 3))])
    assert next(results).result == ["first"]
    assert until(lambda: len(numbers(folder)) >= busy, 120)
    results.close()
    assert until(lambda: not any(map(alive, numbers(folder))), 60)


@pytest.mark.slow
def test_a_worker_has_no_semaphore_that_it_could_leave_behind(forked):
    results = run(forked, launcher_jobs.lock_of_bars, ["a", "b"])
    assert [each.result for each in results.values()] == [["RLock"]] * 2


@pytest.mark.slow
def test_killed_workers_lose_nothing(forked, tmp_path):
    check_deaths(forked, tmp_path)


@pytest.mark.slow
def test_workers_continue_while_a_result_is_processed_until_the_iterator_is_closed(forked, tmp_path):
    check_close(forked, tmp_path, 2)
    assert until(lambda: not multiprocessing.active_children(), 60)


@pytest.mark.slow
def test_each_worker_sees_a_gpu_of_its_own(forked, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    forked.device = "cuda"
    seen = run(forked, launcher_jobs.see_gpu, [f"{tmp_path}|a", f"{tmp_path}|b"])
    assert sorted(each.result[0] for each in seen.values()) == ["4", "6"]


@pytest.mark.slow
def test_an_exception_reaches_the_caller_and_ends_the_workers(forked):
    with pytest.raises(LookupError, match="no a"):
        run(forked, launcher_jobs.fail, ["a", "a"])
    assert until(lambda: not multiprocessing.active_children(), 60)


@pytest.mark.slow
def test_a_study_does_not_wait_for_its_workers_to_unload(forked):
    start = time.monotonic()
    run(forked, launcher_jobs.slow_to_leave, ["a", "b", "c"])
    assert time.monotonic() - start < 240
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_workers_of_a_killed_parent_leave(tmp_path, monkeypatch):
    code = (
        "import launcher_jobs, sys\nfrom clipadapter.bench.launchers import Job, create_launcher\n"
        "if __name__ == '__main__':\n"
        "    jobs = [Job(i, sys.argv[1]) for i in range(2)]\n"
        "    list(create_launcher('local', workers=2).run(launcher_jobs.linger, jobs))\n"
    )
    (tmp_path / "parent.py").write_text(code)
    (tmp_path / "workers").mkdir()
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "workers")]
    monkeypatch.setenv("PYTHONPATH", TEST_FOLDER, prepend=os.pathsep)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as parent:
        try:
            assert until(lambda: len(numbers(tmp_path / "workers")) == 2, 240)
        finally:
            parent.send_signal(signal.SIGKILL)
    assert until(lambda: not any(map(alive, numbers(tmp_path / "workers"))), 60)


@pytest.fixture
def source(tmp_path):
    """Features of three classes, as ``features:FOLDER``."""
    X, y, text = toy_features((6, 6, 6), noise=1.0)
    Q, truth, _ = toy_features((4, 4, 4), noise=1.0, seed=7)
    provenance = {"encoder": "toy", "fingerprint": "f", "data": "toys"}
    support, test = (FeatureSet(a, tuple(map(str, b)), tuple(text.labels), provenance) for a, b in ((X, y), (Q, truth)))
    save_bundle(Bundle(support, text, {"test": TestPart(test)}), tmp_path / "features")
    return f"{FEATURES}{tmp_path / 'features'}"


def figures(source, out, launcher):
    """Metrics of each run by its key."""
    result = run_suite(parse_suite("own", SUITE), [source], {}, out, launcher)
    assert (result.n_made, result.n_failed) == (12, 0)
    return {one.key: one.metrics for one in RecordFolder(out).read()}


@pytest.mark.slow
def test_two_workers_make_the_records_that_one_makes(source, local, tmp_path):
    expected = figures(source, tmp_path / "one", create_launcher("local", workers=1))
    assert len(expected) == 12
    assert figures(source, tmp_path / "two", local) == expected


def fail_to_start(*_):
    """As Ray does on a machine that is too busy."""
    raise Exception("the current node timed out during startup")


def test_errors_on_a_missing_or_unreachable_ray_say_what_to_do(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(MissingExtraError, match=re.escape(install_command("ray"))):
            run(create_launcher("ray"), launcher_jobs.upper, ["a"])
    ray = pytest.importorskip("ray")
    with monkeypatch.context() as patch:
        patch.setattr(ray._private.node.Node, "start_ray_processes", fail_to_start)
        patch.setattr(ray._private.node.Node, "start_head_processes", fail_to_start)
        with pytest.raises(InputError, match="no Ray could be reached on this machine .the current node timed out"):
            run(create_launcher("ray"), launcher_jobs.upper, ["a"])
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match="no Ray could be reached at RAY_ADDRESS=127.0.0.1:1 .*unset RAY_ADDRESS"):
        run(create_launcher("ray"), launcher_jobs.upper, ["a"])


def test_a_bundle_travels_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def cut():
        yield b"facts"
        raise ConnectionError("the node died")

    with pytest.raises(ConnectionError):
        unpack_bundle("abc", lambda: list(cut()))
    with pytest.raises(ValueError):
        unpack_bundle("abc", lambda: [b"facts"])
    assert list((tmp_path / "clipadapter" / "bundles").iterdir()) == []
    folder = unpack_bundle("abc", lambda: [b"facts", b"arrays"])
    assert ((folder / FACTS_FILE).read_bytes(), (folder / ARRAYS_FILE).read_bytes()) == (b"facts", b"arrays")
    assert unpack_bundle("abc", cut) == folder  # what is there is not asked for again
    assert get_bundle_folder("no task") is None


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    """A Ray of two cores that runs already, as a cluster does; its cache is its own."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", CONNECT)
        patch.setenv("PYTHONPATH", TEST_FOLDER, prepend=os.pathsep)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("node")))
        with ray.init(
            "local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, configure_logging=False
        ):
            yield create_launcher("ray", workers=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
class TestRay:
    """What kills workers comes last: to start one takes seconds."""

    def test_records_are_those_of_the_local_launcher(self, ray, source, tmp_path):
        expected = figures(source, tmp_path / "local", create_launcher("local", workers=1))
        assert figures(source, tmp_path / "ray", ray) == expected

    def test_features_travel_to_a_node_without_them(self, ray, tmp_path):
        import ray as module

        from clipadapter.bench.launchers.ray import _parcel, _perform
        from clipadapter.bench.plan import FitSpec
        from clipadapter.bench.suite import Variant

        there = tmp_path / "name"
        there.mkdir()
        (there / FACTS_FILE).write_text("facts")
        (there / ARRAYS_FILE).write_text("arrays")
        task = FitSpec(bundle=str(there), variant=Variant(head="knn"), shots=1, seed=1, rows=[]).model_dump_json()
        parcel = _parcel(module, task, {})
        perform = module.remote(_perform)
        assert module.get(perform.remote(launcher_jobs.bundle, task, parcel)) == [str(there), "facts", "arrays"]
        there.rename(tmp_path / "away")
        path, *content = module.get(perform.remote(launcher_jobs.bundle, task, parcel))
        assert content == ["facts", "arrays"]
        assert path.startswith(os.environ["XDG_CACHE_HOME"])

    def test_an_exception_reaches_the_caller(self, ray):
        with pytest.raises(LookupError, match="no a"):
            run(ray, launcher_jobs.fail, ["a", "a"])

    def test_a_cluster_without_a_gpu_is_refused_instead_of_waited_for(self, ray, monkeypatch):
        monkeypatch.setattr(ray, "device", "cuda")
        with pytest.raises(InputError, match="no node of the Ray cluster has a GPU"):
            run(ray, launcher_jobs.upper, ["a"])

    def test_a_fit_has_one_thread(self, ray):
        assert run(ray, launcher_jobs.threads, ["a"])["a"].result == ["1"]

    def test_closing_stops_what_runs(self, ray, tmp_path):
        check_close(ray, tmp_path, 1)

    def test_killed_workers_lose_nothing(self, ray, tmp_path):
        check_deaths(ray, tmp_path)
