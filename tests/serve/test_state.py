"""Bodies that are received at a time: when one is cut off."""

import asyncio
from contextlib import ExitStack

import pytest

from clipadapter.serve.state import Upload, Uploads


@pytest.mark.parametrize(
    ("size", "seconds", "due"),
    [
        (0, 0, 3),  # the grace
        (9000, 1, 4),  # fast so far, but a pause of three seconds is too long
        (1000, 2, 4),  # 1000 bytes at 1000 a second, and the grace
        (90_000, 18, 20),  # the deadline
    ],
)
def test_a_body_is_due_by_its_rate_a_pause_and_the_deadline(monkeypatch, size, seconds, due):
    clock = [100.0]
    monkeypatch.setattr("clipadapter.serve.state.time.monotonic", lambda: clock[0])

    async def due_at():
        upload = Upload()
        upload.size = size
        clock[0] += seconds
        return upload.due_at(1000, 120.0)

    assert asyncio.run(due_at()) == 100 + due


def test_for_a_new_body_the_slowest_is_cut_off():
    async def three():
        uploads = Uploads(2)
        with uploads.add() as slow, uploads.add() as fast:
            slow.started_at -= 10
            fast.started_at -= 10
            slow.size, fast.size = 1000, 100_000
            with uploads.add() as third:
                assert slow.is_evicted and slow.scope.cancel_called
                assert not fast.is_evicted and not third.is_evicted

    asyncio.run(three())


@pytest.mark.parametrize("age", [0.01, 0.5])
def test_however_many_slow_bodies_come_a_fast_one_is_received(monkeypatch, age):
    """One attacker opens them as fast as they are cut off, so that all are recent."""
    monkeypatch.setattr("clipadapter.serve.state.time.monotonic", lambda: 100.0)

    async def many():
        uploads, fast = Uploads(4), None
        with ExitStack() as stack:
            for number in range(100):
                upload = stack.enter_context(uploads.add())
                upload.started_at -= age
                upload.size = 200
                if number == 50:
                    fast = upload
                    fast.size = 50_000
            assert not fast.is_evicted

    asyncio.run(many())


def test_a_body_that_has_just_begun_is_not_the_slowest():
    async def two():
        uploads = Uploads(2)
        with uploads.add() as slow, uploads.add() as new:
            slow.started_at -= 2
            slow.size = 1000
            with uploads.add():
                assert slow.is_evicted and not new.is_evicted

    asyncio.run(two())
