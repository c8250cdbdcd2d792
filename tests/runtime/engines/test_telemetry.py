"""What is set in the environment so that runtimes tell nobody is as it was before, also where threads meet."""

import logging
import os
import threading

import pytest

from clipadapter.runtime.engines.telemetry import SWITCHES, telemetry_disabled
from clipadapter.runtime.engines.tracing import suppress_logs


@pytest.fixture
def plain(monkeypatch):
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)


def test_the_environment_is_as_it_was(plain, monkeypatch):
    monkeypatch.setenv("CI", "no")
    with pytest.raises(KeyError), telemetry_disabled():
        assert {name: os.environ[name] for name in SWITCHES} == SWITCHES
        with telemetry_disabled():
            pass
        assert os.environ["CI"] == SWITCHES["CI"]
        raise KeyError
    assert {name: os.environ.get(name) for name in SWITCHES} == {**dict.fromkeys(SWITCHES), "CI": "no"}


def test_one_thread_may_leave_before_another(plain):
    inside, left, seen = threading.Event(), threading.Event(), []

    def other():
        with telemetry_disabled():
            inside.set()
            left.wait(5)
            seen.append({name: os.environ.get(name) for name in SWITCHES})

    thread = threading.Thread(target=other)
    with telemetry_disabled():
        thread.start()
        assert inside.wait(5)
    left.set()
    thread.join()
    assert seen == [SWITCHES]
    assert not set(SWITCHES) & set(os.environ)


def test_threads_convert_one_after_another(plain):
    inside, order = threading.Event(), []

    def other():
        inside.set()
        with suppress_logs():
            order.append("other")

    before = logging.root.manager.disable
    with suppress_logs():
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(5)
        thread.join(0.05)
        order.append("first")
    thread.join(5)
    assert order == ["first", "other"]
    assert logging.root.manager.disable == before
