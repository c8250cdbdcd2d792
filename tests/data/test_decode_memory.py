import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipadapter.data.decode_process import MemoryBudget, _cgroup_limits, memory_bytes, peak_bytes


def test_threads_never_hold_more_than_the_budget_together():
    budget, most, lock = MemoryBudget(10), 0, threading.Lock()

    def work(size):
        nonlocal most
        with budget.hold(size), lock:
            most = max(most, budget.held)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3, 4, 5, 2, 10, 1] * 50))
    assert most <= 10 and budget.held == 0


def test_a_request_above_the_budget_runs_alone():
    budget, entered = MemoryBudget(10), threading.Event()

    def large():
        with budget.hold(25):
            entered.set()
            return budget.held

    with ThreadPoolExecutor(1) as pool:
        with budget.hold(1):
            answer = pool.submit(large)
            while not budget.waiting:
                pass
            assert not entered.is_set()
        assert answer.result(10) == 25
    assert budget.held == 0


def test_memory_is_granted_in_the_order_of_requests():
    budget, order = MemoryBudget(10), []

    def work(size):
        with budget.hold(size):
            order.append(size)

    with ThreadPoolExecutor(3) as pool, budget.hold(10):
        for i, size in enumerate((8, 1, 9), 1):
            pool.submit(work, size)
            while budget.waiting < i:
                pass
    # 8 and 1 fit together and may end in either order; 9 is last.
    assert sorted(order[:2]) == [1, 8] and order[2] == 9


def test_room_is_given_back_when_decoding_fails():
    budget = MemoryBudget(10)
    with pytest.raises(KeyError), budget.hold(10):
        raise KeyError
    assert budget.held == 0


def test_the_peak_is_that_of_what_is_decoded_and_of_the_coefficients_of_the_whole_file():
    assert peak_bytes("JPEG", 160, 10) == 120
    assert peak_bytes("JPEG", 160, 10, True) == 120 + 8 * 160  # coefficients are not shrunk
    assert peak_bytes("WebP", 10, 10) == 200


def test_the_memory_of_a_container_is_found_by_its_group(tmp_path):
    (tmp_path / "cgroup").write_text("0::/system.slice/a.service\n")
    group = tmp_path / "root" / "system.slice" / "a.service" / "memory.max"
    assert group in _cgroup_limits(tmp_path / "cgroup", tmp_path / "root")
    assert _cgroup_limits(tmp_path / "none") == []
    assert memory_bytes() > 1 << 26
