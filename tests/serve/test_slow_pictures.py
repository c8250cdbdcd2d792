"""Costly pictures: refused at once, or decoded where no other picture waits."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from clipadapter.data.images import is_slow_file
from clipadapter.serve import Limits

from .colours import RED, ask, refused
from .test_batching import wait_until


def jpeg2000(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(buffer, "JPEG2000")
    return buffer.getvalue()


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


def test_a_picture_of_a_slow_format_is_predicted(serve):
    assert [one["label"] for one in predict(serve(), jpeg2000((255, 0, 0)), RED)] == ["red", "red"]


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
    batcher = client.app.state.server.models.get().batcher
    slow = jpeg2000((0, 0, 255))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(predict, client, *[slow] * 8)
        wait_until(lambda: batcher.slow_pending == 8)
        assert len(predict(client, *[RED] * 8)) == 8  # the queue has all its places
        for pictures in ([slow], [slow] * 8, [RED, slow]):
            refusal = ask(client, *pictures)
            assert refused(refusal, 503, "slow to decode", "JPEG") and int(refusal.headers["retry-after"]) >= 1
        held_decoder.set()
        assert len(waiting.result(30)) == 8
    wait_until(lambda: batcher.pending == 0)
    assert predict(client, slow)[0]["label"] == "red"
    assert 'clipadapter_refused_total{reason="slow"} 3.0' in client.get("/metrics").text


def test_the_rate_of_slow_pictures_refuses_no_others(serve, held_decoder, colours):
    client = serve(Limits(max_batch=1))
    batcher = client.app.state.server.models.get().batcher
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(predict, client, *[jpeg2000((0, 0, 255))] * 8)
        wait_until(lambda: batcher.slow_pending == 8)
        rate = batcher._pictures_per_second
        held_decoder.set()
        waiting.result(30)
    assert batcher._pictures_per_second == rate


def test_pictures_that_are_slow_or_unreadable_count_as_having_left_the_queue(serve):
    """Else a flood of them makes the queue look slow, and others are refused."""
    client = serve()
    batcher = client.app.state.server.models.get().batcher
    predict(client, *[b"nothing"] * 3, jpeg2000((255, 0, 0)))
    assert batcher._departed == 4


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
    slow = jpeg2000((255, 0, 0))
    for pictures in ([slow], [RED, slow]):
        refusal = ask(client, *pictures)
        assert refused(refusal, 415, "jpeg2000", "accepts jpeg, png")
    refusal = client.post("/v1/predict", files=[("images", ("a.jp2", slow))])
    assert refused(refusal, 415, "jpeg2000", "accepts jpeg, png")
    assert [one["error"] or one["label"] for one in predict(client, RED, b"nothing")] == ["red", "not an image"]
