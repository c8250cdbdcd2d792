"""A real server meets odd requests, and bodies that would cost far more than they are: it answers or closes, and stays.

``CLIPADAPTER_ATTACKS=100`` makes the bodies as large as the limit allows, and the mutated requests many.
"""

import _socket
import logging
import os
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ..serve.bombs import bombs
from ..serve.colours import BLUE, RED, write_file
from ..serve.test_process import Running
from .server_corpus import heads, lengths, mutated

FACTOR = float(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
BOMB_BYTES = min(int(FACTOR * (1 << 20)), 31 << 20)
MUTATED = int(100 * FACTOR)
COSTLY_BYTES = 3
"""Memory of the server for each byte of a body."""
ROOM_BYTES = 24 << 20
"""What it may grow by besides: its threads' heaps, and what it loads when it is first asked."""
HEALTH_SECONDS = 5.0
"""In which it must say that it lives, on a machine that does much else; docs/serving.md says what is usual."""
PATIENCE = 30
logger = logging.getLogger(__name__)
"""``--log-cli-level=INFO`` shows what each body cost."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    file = write_file(tmp_path_factory.mktemp("served") / "colours.onnx")
    running = Running(file, "--header-timeout", "1", "--deadline", "30")
    yield running
    running.process.kill()
    running.process.wait()
    running.process.stderr.close()
    running.process.stdout.close()


@pytest.fixture(autouse=True)
def stays(server):
    """After whatever came it answers as before, nothing is held, and nothing failed within."""
    yield
    assert server.process.poll() is None
    status, answer, _ = server.predict(RED, BLUE)
    assert status == 200 and [one["label"] for one in answer["predictions"]] == ["red", "blue"]
    assert not [line for line in server.log if "traceback" in line.lower()]


def exchange(server, data, cut):
    """The status of the answer to these bytes; None if the connection was closed without one."""
    with socket.socket() as connection:
        connection.settimeout(PATIENCE)
        _socket.socket.connect(connection, ("127.0.0.1", server.port))
        answer = b""
        try:
            connection.sendall(data)
            if cut:
                connection.shutdown(socket.SHUT_WR)
            while b"\r\n" not in answer and (piece := connection.recv(4096)):
                answer += piece
        except ConnectionError:
            pass
    status = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return int(status[1]) if status else None


@pytest.mark.parametrize("corpus", [heads(), lengths(), list(mutated(MUTATED))], ids=["heads", "lengths", "mutated"])
def test_odd_requests_are_refused_or_closed(server, corpus):
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda odd: exchange(server, odd.data, odd.cut), corpus))
    wrong = {odd.name: status for odd, status in zip(corpus, statuses, strict=True) if status and status >= 500}
    assert not {name: status for name, status in wrong.items() if status != 504}, wrong


def memory(server, what):
    text = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+) kB", text)[1]) << 10


class Health:
    """Asks whether the server lives as long as the context lasts; keeps the longest wait."""

    def __init__(self, server):
        self.server, self.longest, self.ended = server, 0.0, threading.Event()
        self.thread = threading.Thread(target=self.ask)

    def ask(self):
        while not self.ended.is_set():
            began = time.monotonic()
            assert self.server.ask("GET", "/v2/health/live")[0] == 200
            self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()


BOMBS = list(bombs(BOMB_BYTES))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_costly_bodies_cost_three_times_their_size_and_delay_nobody(server):
    costs, first = {}, memory(server, "VmRSS")
    for bomb in BOMBS:
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # the peak begins anew
        before = memory(server, "VmRSS")
        with Health(server) as health:
            status, _, _ = server.ask("POST", bomb.path, bomb.body, **{"content-type": bomb.content_type})
        grown = memory(server, "VmHWM") - before
        costs[bomb.name] = (status, len(bomb.body), grown, health.longest)
        logger.info("%s: %s, %d bytes cost %d, health waited %.3f s", bomb.name, *costs[bomb.name])
        assert status in (200, 400, 413, 422), costs
        assert grown <= COSTLY_BYTES * len(bomb.body) + ROOM_BYTES, costs
        assert health.longest < HEALTH_SECONDS, costs
    # Heaps of two threads may keep what one body took each, and no more however many come.
    assert memory(server, "VmRSS") - first <= 2 * COSTLY_BYTES * BOMB_BYTES + ROOM_BYTES, costs
