import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from clipadapter.features import FeatureStore, extract

N, BATCH, COMMITS = 60, 8, 3


@pytest.mark.slow
def test_kill_loses_nothing_committed_and_computes_nothing_twice(picture_folder, tmp_path, toy):
    paths, store_path = picture_folder(N), tmp_path / "s.sqlite"
    script = Path(__file__).with_name("embedding_process.py")
    command = [sys.executable, script, store_path, paths[0].parent, str(BATCH)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(COMMITS):
            assert process.stdout.readline() == "commit\n"
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.stdout.readline() == "commit\n"
        process.kill()
    with FeatureStore(store_path) as store:
        assert len(store) == COMMITS * BATCH
        result = extract(toy, paths, store=store, batch_size=BATCH)
    assert (result.computed, result.cached) == (N - COMMITS * BATCH, COMMITS * BATCH)
    np.testing.assert_allclose(result.features, extract(toy, paths).features, rtol=1e-5, atol=1e-6)


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
                extract(toy, paths, store=store, batch_size=4, keep=False)
        assert not {thread for thread in threading.enumerate() if thread.name.startswith("clipadapter")} - others
        assert extract(toy, paths, store=store, keep=False).cached == 8
