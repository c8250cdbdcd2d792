"""Costly pictures: refused at once, or decoded where no other picture waits."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from clipadapter.data.images import is_slow_file
from clipadapter.serve import Limits

from .colours import RED, ask, picture, refused
from .test_batching import batcher, wait_until

SLOW_RED, SLOW_BLUE = (picture(colour, 32, "JPEG2000") for colour in ("red", "blue"))


def scan_bomb():
    """The last of the scans comes 1,100 times, each of a million samples; the server's limit is 1,000 million."""
    buffer = io.BytesIO()
    Image.new("L", (1024, 1024), 99).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + 1_100 * data[last:-2] + data[-2:]


def predict(client, *pictures):
    return ask(client, *pictures).json()["predictions"]


def test_a_scan_bomb_affects_its_own_answer_only(serve):
    bad, good = predict(serve(), scan_bomb(), RED)
    assert "too costly to decode" in bad["error"] and "limit 1000" in bad["error"]
    assert good["label"] == "red"


@pytest.fixture
def held_decoder(monkeypatch):
    """The decoder of slow formats waits until the returned event is set."""
    go = threading.Event()

    def decode(*arguments):
        assert go.wait(30)
        return Image.new("RGB", (32, 32), "red")

    monkeypatch.setattr("clipadapter.data.images.DECODER_PROCESSES.decode", decode)
    yield go
    go.set()


def test_slow_pictures_have_places_of_their_own(serve, held_decoder):
    client = serve(Limits(queue=8, max_pictures=8))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(predict, client, *[SLOW_BLUE] * 8)
        wait_until(lambda: batcher(client).slow_pending == 8)
        assert len(predict(client, *[RED] * 8)) == 8  # the queue has all its places
        for pictures in ([SLOW_BLUE], [SLOW_BLUE] * 8, [RED, SLOW_BLUE]):
            refusal = ask(client, *pictures)
            assert refused(refusal, 503, "slow to decode", "JPEG") and int(refusal.headers["retry-after"]) >= 1
        held_decoder.set()
        assert len(waiting.result(30)) == 8
    wait_until(lambda: batcher(client).pending == 0)
    assert predict(client, SLOW_BLUE)[0]["label"] == "red"
    assert 'clipadapter_refused_total{reason="slow"} 3.0' in client.get("/metrics").text


def test_the_rate_of_slow_pictures_refuses_no_others(serve, held_decoder, colours):
    client = serve(Limits(max_batch=1))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(predict, client, *[SLOW_BLUE] * 8)
        wait_until(lambda: batcher(client).slow_pending == 8)
        rate = batcher(client)._pictures_per_second
        held_decoder.set()
        waiting.result(30)
    assert batcher(client)._pictures_per_second == rate


def test_pictures_that_are_slow_or_unreadable_are_answered_and_count_as_having_left_the_queue(serve):
    """Else a flood of them makes the queue look slow, and others are refused."""
    client = serve()
    found = predict(client, *[b"nothing"] * 3, SLOW_RED)
    assert [one["label"] for one in found] == [None, None, None, "red"]
    assert batcher(client)._departed == 4


@pytest.mark.parametrize(
    ("kind", "mode", "side", "is_slow"),
    [("PNG", "RGB", 3600, False), ("PNG", "RGB", 3700, True), ("JPEG", "L", 6300, False), ("JPEG", "L", 6400, True)],
)
def test_a_picture_with_more_samples_than_a_large_photograph_is_slow(kind, mode, side, is_slow):
    data = io.BytesIO()
    Image.new(mode, (side, side)).save(data, kind)
    assert is_slow_file(data.getvalue(), 50_000_000) is is_slow


def test_formats_that_are_switched_off_are_refused(serve):
    client = serve(Limits(formats=("jpeg", "png")))
    for pictures in ([SLOW_RED], [RED, SLOW_RED]):
        refusal = ask(client, *pictures)
        assert refused(refusal, 415, "jpeg2000", "accepts jpeg, png")
    refusal = client.post("/v1/predict", files=[("images", ("a.jp2", SLOW_RED))])
    assert refused(refusal, 415, "jpeg2000", "accepts jpeg, png")
    assert [one["error"] or one["label"] for one in predict(client, RED, b"nothing")] == ["red", "not an image"]
