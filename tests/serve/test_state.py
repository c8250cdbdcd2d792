"""Bodies that are received at a time: when one is cut off."""

import asyncio

import pytest

from clipadapter.serve.limits import RequestRefused
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


def test_recent_bodies_are_not_cut_off_for_another():
    async def two():
        uploads = Uploads(1)
        with uploads.add() as first:
            with pytest.raises(RequestRefused, match="are in progress") as refusal, uploads.add():
                pass
            assert not first.is_evicted and (refusal.value.status, refusal.value.reason) == (503, "bodies")
        with uploads.add():
            pass

    asyncio.run(two())
