"""With the weights on disk, fitting and predicting touch no network: a process whose sockets are cut does both."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

CUT = """
import socket, sys

def refuse(*_, **__):
    open("touched", "w").close()
    raise OSError("the network is cut")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from clipadapter.cli.app import main
sys.argv = ["clipadapter", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_fit_and_predict_with_lite_touch_no_network(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    rng = np.random.default_rng(0)
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        for i in range(3):
            path = tmp_path / "shots" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(-20, 20, (40, 40, 3))
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)

    def run(*words):
        return subprocess.run([sys.executable, "-c", CUT, *words], cwd=tmp_path, capture_output=True, text=True)

    fitted = run("fit", "shots", "--encoder", "lite", "--out", "model")
    assert fitted.returncode == 0, fitted.stderr
    answer = run("predict", "model", "shots/blue/0.png")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("blue")
    assert not (tmp_path / "touched").exists()
    run("fit", "shots", "--encoder", "auto", "--out", "other")  # asks the hub, which shows that the wire is watched
    assert (tmp_path / "touched").exists()
