"""Pictures of many requests run together, in time or not at all."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from clipadapter.serve import Limits, create_app
from clipadapter.serve.prediction_request import load_picture

from .colours import BLUE, GREY, RED, OpenedModels, ask, base64_of, refused
from .test_prediction_request import BODY, send


def wait_until(true, seconds=10):
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


@pytest.fixture
def post_later():
    """As `ask`, in another thread; gives the future answer."""
    with ThreadPoolExecutor(32) as pool:
        yield partial(pool.submit, ask)


def batcher(client):
    return client.app.state.server.models.get().batcher


def label_of(future):
    return future.result(20).json()["predictions"][0]["label"]


def test_pictures_that_arrive_while_a_batch_runs_share_the_next_batch(serve, colours, post_later):
    client, before = serve(), len(colours.batches)
    colours.go.clear()
    first = post_later(client, RED)
    wait_until(colours.running.is_set)
    rest = [post_later(client, one) for one in (RED, BLUE) * 3]
    wait_until(lambda: len(batcher(client)._queue) == 6)
    colours.go.set()
    assert [label_of(one) for one in [first, *rest]] == ["red", *["red", "blue"] * 3]
    assert [size for size in colours.batches[before:] if size] == [1, 6]


def test_batches_have_a_maximum_size(serve, colours, post_later):
    client, before = serve(Limits(max_batch=4)), len(colours.batches)
    found = post_later(client, *[RED, BLUE] * 5).result(20).json()["predictions"]
    assert [one["label"] for one in found] == ["red", "blue"] * 5
    assert max(colours.batches[before:]) <= 4 and sum(colours.batches[before:]) == 10


def test_on_an_idle_server_nothing_waits(serve, post_later, monkeypatch):
    monkeypatch.setattr("clipadapter.serve.batching.MAX_WAIT_SECONDS", 20.0)
    client = serve()
    began = time.monotonic()
    assert label_of(post_later(client, RED)) == "red"
    assert time.monotonic() - began < 5


def test_a_picture_that_is_decoded_for_long_holds_no_batch_back(serve, post_later, monkeypatch):
    go = threading.Event()

    def load(predictor, file, limits):
        assert file != base64_of(BLUE) or go.wait(20)
        return load_picture(predictor, file, limits)

    monkeypatch.setattr("clipadapter.serve.prediction_request.load_picture", load)
    client = serve()
    slow = post_later(client, BLUE)
    wait_until(lambda: batcher(client)._loading == 1)
    assert label_of(post_later(client, RED)) == "red"
    go.set()
    assert label_of(slow) == "blue"


def test_requests_of_one_batch_keep_their_own_options(serve, colours, post_later):
    client = serve()
    colours.go.clear()
    first = post_later(client, RED)
    wait_until(colours.running.is_set)
    plain, strict = post_later(client, GREY), post_later(client, GREY, reject=0.1)
    sets = post_later(client, RED, coverage=0.8)
    wait_until(lambda: len(batcher(client)._queue) == 3)
    colours.go.set()
    assert label_of(first) == "red" and label_of(plain) == "red" and label_of(strict) is None
    assert sets.result().json()["predictions"][0]["labels"] == ["red"]
    assert plain.result().json()["predictions"][0]["labels"] is None


def test_a_full_queue_refuses_and_recovers(serve, colours, post_later):
    client = serve(Limits(queue=4, max_pictures=4))
    colours.go.clear()
    waiting = [post_later(client, RED) for _ in range(3)]
    wait_until(lambda: batcher(client).pending == 3)
    refusal = ask(client, RED, RED)
    assert refused(refusal, 503, "the server is busy") and int(refusal.headers["retry-after"]) >= 1
    waiting.append(post_later(client, RED))  # one fits
    wait_until(lambda: batcher(client).pending == 4)
    assert client.get("/v1/models").status_code == 200  # other requests are answered
    assert client.post("/v1/predict", content=b"not looked at").status_code == 503
    colours.go.set()
    assert [label_of(one) for one in waiting] == ["red"] * 4
    wait_until(lambda: batcher(client).pending == 0)
    assert ask(client, *[RED] * 4).status_code == 200
    assert 'clipadapter_refused_total{reason="queue"} 2.0' in client.get("/metrics").text


def test_a_request_that_would_wait_too_long_is_refused_at_once(serve, colours, post_later):
    client = serve(Limits(deadline=2.0, max_batch=2))
    colours.go.clear()
    batcher(client)._pictures_per_second = 0.5  # pictures a second
    waiting = [post_later(client, RED) for _ in range(5)]
    wait_until(lambda: batcher(client).pending == 5)
    refusal = ask(client, RED)
    assert refused(refusal, 503, "about 10.0 seconds") and refusal.headers["retry-after"] == "10"
    colours.go.set()
    assert [label_of(one) for one in waiting] == ["red"] * 5


def test_requests_take_turns(serve, colours, post_later):
    client, order, run = serve(Limits(max_batch=2)), [], colours.run

    def ordered(squares):
        order.extend("red" if square[0, 0, 0] > 128 else "blue" for square in squares)
        return run(squares)

    colours.run = ordered
    colours.go.clear()
    many = post_later(client, *[BLUE] * 40)
    wait_until(colours.running.is_set)
    one = post_later(client, RED)
    wait_until(lambda: batcher(client).pending == 41)
    colours.go.set()
    assert label_of(one) == "red" and len(many.result(20).json()["predictions"]) == 40
    assert order.index("red") < 20  # not after the 40 that came before it; it may still be decoded while some run


def test_a_long_request_does_not_make_a_short_one_wait_too_long(serve, colours, post_later):
    client = serve(Limits(deadline=20.0, max_batch=2))
    colours.go.clear()
    many = post_later(client, *[BLUE] * 40)
    wait_until(lambda: batcher(client).pending == 40)
    batcher(client)._pictures_per_second = 0.1  # 40 pictures would need 400 seconds
    one = post_later(client, RED)
    wait_until(lambda: batcher(client).pending == 41)
    colours.go.set()
    assert label_of(one) == "red" and many.result(20).status_code == 200


def test_long_requests_leave_places_for_short_ones(serve, colours, post_later):
    client = serve(Limits(queue=8, max_pictures=8))
    assert post_later(client, *[RED] * 8).result(20).status_code == 200  # alone it may take all
    colours.go.clear()
    waiting = [post_later(client, *[RED] * 4)]
    wait_until(lambda: batcher(client).pending == 4)
    assert refused(post_later(client, *[RED] * 3).result(20), 503, "the server is busy")
    waiting += [post_later(client, RED) for _ in range(4)]
    wait_until(lambda: batcher(client).pending == 8)
    colours.go.set()
    assert [label_of(one) for one in waiting] == ["red"] * 5


def test_late_pictures_are_dropped_before_they_run(serve, colours, post_later):
    client, before = serve(Limits(deadline=0.2)), len(colours.batches)
    colours.go.clear()
    running = post_later(client, RED)
    wait_until(colours.running.is_set)
    late = post_later(client, *[BLUE] * 3)
    assert refused(late.result(20), 504, "no answer within 0.2 seconds")
    assert refused(running.result(20), 504)
    colours.go.set()
    wait_until(lambda: batcher(client).pending == 0)
    assert [size for size in colours.batches[before:] if size] == [1]
    assert ask(client, RED).status_code == 200


def test_late_pictures_are_not_even_loaded(serve, colours, post_later):
    client, made, go = serve(Limits(deadline=0.2)), [], threading.Event()

    def preprocess(*args, **kwargs):
        made.append(1)
        go.wait(20)
        return type(colours).preprocess(colours, *args, **kwargs)

    colours.preprocess = preprocess
    assert refused(post_later(client, *[RED] * 60).result(20), 504)
    begun = len(made)
    go.set()
    wait_until(lambda: batcher(client).pending == 0)
    assert len(made) == begun < 60


def test_a_client_may_wait_less_than_the_server(serve, colours, post_later):
    client = serve()
    colours.go.clear()
    began = time.monotonic()
    assert refused(post_later(client, RED, path="/v1/predict?timeout=0.1").result(20), 504, "0.1 seconds")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("timeout", ["0", "-1", "x", "nan", "1e9"])
def test_invalid_timeouts_are_refused(client, timeout):
    assert refused(ask(client, RED, path=f"/v1/predict?timeout={timeout}"), 422, "timeout")


def test_a_backend_failure_affects_its_batch_only(serve, colours):
    client, good = serve(raise_server_exceptions=False), type(colours).run
    colours.run = lambda squares: 1 / 0
    assert refused(ask(client, RED), 500, "its log says how")
    colours.run = lambda squares: good(colours, squares)
    assert ask(client, RED).status_code == 200
    assert batcher(client).pending == 0


def test_pictures_of_a_disconnected_client_do_not_run(colours, files):
    models = OpenedModels([str(files / "colours.onnx")], model=colours)
    app, before, gone = create_app(models), len(colours.batches), threading.Event()
    colours.go.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(send, app, [BODY], gone=gone)
        wait_until(colours.running.is_set)
        second = pool.submit(send, app, [BODY], gone=gone)
        wait_until(lambda: models.get().batcher.pending == 2)
        gone.set()
        assert [one.result(20)[0] for one in (first, second)] == [None, None]
        colours.go.set()
        wait_until(lambda: models.get().batcher.pending == 0)
    assert [size for size in colours.batches[before:] if size] == [1]  # the first ran already
    models.close()
