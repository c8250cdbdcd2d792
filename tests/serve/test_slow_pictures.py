"""Costly pictures: refused at once, or decoded where no other picture waits."""

import io
import threading

from PIL import Image

from .colours import RED, base64_of


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


def ask(client, *pictures):
    return client.post("/v1/predict", json={"images": [base64_of(data) for data in pictures]}).json()["predictions"]


def test_a_scan_bomb_affects_its_own_answer_only(serve):
    bad, good = ask(serve(), scan_bomb(), RED)
    assert "too costly to decode" in bad["error"] and "limit 1000" in bad["error"]
    assert good["label"] == "red"


def test_a_picture_of_a_slow_format_is_predicted(serve):
    assert [one["label"] for one in ask(serve(), jpeg2000((255, 0, 0)), RED)] == ["red", "red"]


def test_while_slow_pictures_are_decoded_others_are_answered(serve, monkeypatch):
    client, begun, go = serve(), threading.Event(), threading.Event()

    def decode(*arguments):
        begun.set()
        assert go.wait(30)
        return Image.new("RGB", (32, 32), "red")

    monkeypatch.setattr("clipadapter.data.images.DECODER_PROCESSES.decode", decode)
    slow = jpeg2000((0, 0, 255))
    answers = []
    threads = [threading.Thread(target=lambda: answers.extend(ask(client, *[slow] * 8))) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert begun.wait(30)
        assert ask(client, RED)[0]["label"] == "red"  # answered while 16 slow ones wait
        assert not answers
    finally:
        go.set()
        for thread in threads:
            thread.join()
    assert len(answers) == 16
