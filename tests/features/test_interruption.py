import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from clipadapter.features import FeatureStore, embed, extract

N, BATCH = 60, 8
MOMENTS = [("commit", 1), ("encode", 4)]


class Process:
    """A running `embedding_process.py`."""

    def __init__(self, *args):
        script = Path(__file__).with_name("embedding_process.py")
        self.popen = subprocess.Popen(
            [sys.executable, script, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def word(self):
        """Wait until it stops or is done."""
        return self.popen.stdout.readline().split()

    def go(self):
        self.popen.stdin.write("\n")
        self.popen.stdin.flush()

    def kill(self):
        self.popen.kill()
        self.popen.wait()

    def close(self):
        self.kill()
        self.popen.stdin.close()
        self.popen.stdout.close()


@pytest.fixture
def start():
    running = []

    def run(*args):
        running.append(Process(*args))
        return running[-1]

    yield run
    for process in running:
        process.close()


@pytest.mark.slow
def test_kill_loses_nothing_committed_and_computes_nothing_twice(start, picture_folder, tmp_path, toy):
    paths = picture_folder(N)
    expected = extract(toy, paths).features
    stores = [tmp_path / f"{i}.sqlite" for i in range(len(MOMENTS))]
    running = [start(store, paths[0].parent, BATCH, "encode", "commit") for store in stores]
    for process, store_path, (word, occurrence) in zip(running, stores, MOMENTS, strict=True):
        recorded = 0
        while recorded < occurrence:
            came = process.word()
            recorded += came == [word]
            if recorded < occurrence:
                process.go()
        process.kill()
        committed = (occurrence - 1) * BATCH
        with FeatureStore(store_path) as store:
            assert len(store) == committed
            result = extract(toy, paths, store=store, batch_size=BATCH)
        assert (result.computed, result.cached) == (N - committed, committed)
        np.testing.assert_allclose(result.features, expected, rtol=1e-5, atol=1e-6)


def test_ctrl_c_stops_the_threads_and_keeps_what_was_computed(picture_folder, tmp_path, toy, monkeypatch):
    paths, encode_pixels, calls = picture_folder(20), toy.encode_pixels, []
    others = set(threading.enumerate())  # such as one of a server, which another test has just closed

    def interrupted(pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode_pixels(pixels)

    with FeatureStore(tmp_path / "s.sqlite") as store:
        with monkeypatch.context() as patch:
            patch.setattr(toy, "encode_pixels", interrupted)
            with pytest.raises(KeyboardInterrupt):
                embed(toy, paths, store, batch_size=4)
        assert not {thread for thread in threading.enumerate() if thread.name.startswith("clipadapter")} - others
        assert embed(toy, paths, store).cached == 8
