"""How many pictures a tower works on at a time."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier, get_ident

import pytest
import torch
from torch import nn

from clipadapter.errors import InputError
from clipadapter.utils.parallel import (
    MAX_PARALLEL_BATCHES,
    MAX_TRANSFORMER_CONVOLUTIONS,
    PICTURES_PER_THREAD,
    count_cores,
    is_convolutional,
    parallel_map,
    run_in_batches,
)


class Watched(nn.Module):
    """Layers that remember how many pictures came at a time."""

    def __init__(self, convolutions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(convolutions)))
        self.seen: list[int] = []

    def forward(self, pixels):
        self.seen.append(len(pixels))
        return self.layers(pixels).mean(dim=(2, 3))


@pytest.fixture
def set_threads():
    """Set the number of torch's threads for one test; there are two at first."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def pixels():
    return torch.rand(11, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("convolutions", "at_once", "pieces"),
    [
        (MAX_TRANSFORMER_CONVOLUTIONS + 1, MAX_PARALLEL_BATCHES, [1] + [PICTURES_PER_THREAD] * 5),
        (MAX_TRANSFORMER_CONVOLUTIONS + 1, 1, [3, 4, 4]),  # larger ones where threads share one
        (MAX_TRANSFORMER_CONVOLUTIONS, MAX_PARALLEL_BATCHES, [11]),
    ],
)
def test_a_convolutional_tower_takes_a_few_for_each_thread_and_another_takes_all(
    convolutions, at_once, pieces, monkeypatch, set_threads, pixels
):
    monkeypatch.setattr("clipadapter.utils.parallel.MAX_PARALLEL_BATCHES", at_once)
    tower = Watched(convolutions).eval()
    with torch.inference_mode():
        found = run_in_batches(tower, tower, pixels)
        assert sorted(tower.seen) == pieces
        torch.testing.assert_close(found, tower(pixels))
    assert torch.get_num_threads() == 2


def test_no_thread_keeps_a_gradient(set_threads, pixels):
    tower, kept = Watched(MAX_TRANSFORMER_CONVOLUTIONS + 1), []

    def run(piece):
        found = tower(piece)
        kept.append(found.requires_grad)
        return found

    with torch.inference_mode():
        run_in_batches(run, tower, pixels)
    assert kept == [False] * 6


def test_results_come_in_the_order_of_the_tasks(set_threads):
    def slow_first(i):
        time.sleep(0.05 * (i == 0))
        return i, torch.get_num_threads()

    assert parallel_map([partial(slow_first, i) for i in range(5)], 2) == [(i, 1) for i in range(5)]


def test_patches_and_no_layers_are_not_convolutional():
    assert not is_convolutional(nn.Identity())
    assert not is_convolutional(nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8)))


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert count_cores() == 3
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert count_cores() == 7


@pytest.mark.parametrize(("number", "workers"), [(1, 1), (2, 2), (4, 3), (7, 3)])
def test_tasks_run_on_as_many_threads_as_torch_has_and_share_them(set_threads, number, workers):
    set_threads(number)
    together = Barrier(workers)

    def task(i):
        together.wait(timeout=10)  # breaks unless so many tasks run at the same time
        return i, get_ident(), torch.get_num_threads()

    found = parallel_map([partial(task, i) for i in range(workers)], work=10**9)
    assert [i for i, _, _ in found] == list(range(workers))
    assert len({thread for _, thread, _ in found}) == workers
    assert {share for _, _, share in found} == {number // workers}
    assert torch.get_num_threads() == number


def test_a_new_thread_has_all_of_torchs_threads_after_tasks_had_a_share(set_threads):
    set_threads(3)
    parallel_map([torch.get_num_threads] * 3, work=10**9)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3


def test_small_tasks_run_one_after_the_other_on_one_thread(set_threads):
    set_threads(3)
    found = parallel_map([lambda: (get_ident(), torch.get_num_threads())] * 3, work=10)
    assert found == [(get_ident(), 1)] * 3


def test_a_task_that_fails_says_why(set_threads):
    def fail():
        raise InputError("training diverged")

    with pytest.raises(InputError, match="training diverged"):
        parallel_map([fail, lambda: None, lambda: None], work=10**9)
    assert torch.get_num_threads() == 2
