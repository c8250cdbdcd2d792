"""Mutated exports are refused, and a server goes on answering while damaged files are moved over its own.

`CLIPADAPTER_ATTACKS` is a factor for the number of tries.
"""

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from clipadapter.runtime import ExportMetadata
from clipadapter.runtime.engines.formats import append_checksum
from clipadapter.serve import ServedModels
from clipadapter.utils.pixels import PixelSpec

from ..runtime.conftest import NAMES, SIDE, graph
from ..serve.colours import learned

ATTACKS = int(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
ABOUT = ExportMetadata(NAMES, (PixelSpec(SIDE, (0.0,) * 3, (1.0,) * 3),), learned())

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs limits of memory and moves over open files")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder with small exports in both formats, and their description."""
    onnx, ov = pytest.importorskip("onnx"), pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("sound")
    onnx.save(graph(ABOUT.to_json()), folder / "sound.onnx")
    pair = ov.Core().read_model(folder / "sound.onnx")
    pair.set_rt_info(ABOUT.to_json(), ["clipadapter"])
    ov.save_model(pair, folder / "sound.xml", compress_to_fp16=False)
    (folder / "unsealed.xml").write_bytes((folder / "sound.xml").read_bytes())
    (folder / "unsealed.bin").write_bytes((folder / "sound.bin").read_bytes())
    for name in ("sound.onnx", "sound.xml"):
        append_checksum(folder / name)
    (folder / "facts.json").write_text(ABOUT.to_json(), encoding="utf-8")
    return folder


def test_mutated_exports_are_refused_without_torch_and_within_4_gib(sound):
    script = Path(__file__).with_name("mutate_exports.py")
    command = [sys.executable, str(script), str(sound), str(30 * ATTACKS), "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"faults": [], "loaded": []}


def damaged(sound, rng, k):
    """Graph and weights of a pair by suffix; every third is damaged before its checksum is written."""
    sealed_after = k % 3 == 2
    stem = "unsealed" if sealed_after else "sound"
    parts = {suffix: bytearray((sound / f"{stem}{suffix}").read_bytes()) for suffix in (".xml", ".bin")}
    if sealed_after and k % 2:
        del parts[".xml"][rng.randrange(len(parts[".xml"])) :]
    elif sealed_after:  # weights that lie where the file has none
        parts[".xml"] = parts[".xml"].replace(b'offset="', b'offset="%d' % rng.randrange(1, 10**9))
    else:
        out = parts[".xml" if k % 2 else ".bin"]
        place, length = rng.randrange(len(out)), rng.choice((1, 40, 400))
        flipped = bytes(byte ^ 0x55 for byte in out[place : place + length])
        out[place : place + length] = b"" if rng.random() < 0.3 else flipped
    return parts, sealed_after


def test_damaged_files_over_a_served_one_change_no_answer(sound, tmp_path):
    target, rng = tmp_path / "served.xml", random.Random(0)
    for suffix in (".xml", ".bin"):
        target.with_suffix(suffix).write_bytes((sound / f"sound{suffix}").read_bytes())
    models = ServedModels([str(target)], backend="openvino", threads=1)
    first, answers, done = models.get(), set(), threading.Event()
    squares = np.stack([np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in 255 * np.eye(3, dtype=int)])

    def ask():
        while not done.wait(0.001):
            answers.add(models.get().predictor.run(squares).probabilities.tobytes())

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for k in range(3 * ATTACKS):
            parts, sealed_after = damaged(sound, rng, k)
            for suffix in (".bin", ".xml"):
                (tmp_path / f"fresh{suffix}").write_bytes(parts[suffix])
            if sealed_after:
                append_checksum(tmp_path / "fresh.xml")
            for suffix in (".bin", ".xml"):
                (tmp_path / f"fresh{suffix}").replace(target.with_suffix(suffix))
            models.refresh()
            models.refresh()
            assert thread.is_alive()
            assert models.get() is first
            assert first.error is not None and str(tmp_path) not in first.error, k
    finally:
        done.set()
        thread.join()
        models.close()
    assert len(answers) == 1
