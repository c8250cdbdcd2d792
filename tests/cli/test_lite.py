"""The main job whole, on real pictures with a real encoder, in a process that has no network."""

import json
import shutil
import subprocess
import sys

import pytest

from clipadapter.data import textiles

CUT = """
import json, pathlib, socket, sys

def refuse(*_, **__):
    pathlib.Path("touched").touch()
    raise OSError("the network is cut")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from clipadapter.cli.app import app
from clipadapter.features import autotune
from clipadapter.heads.auto import head
head.MAX_REPEATS = autotune.FIRST_SAMPLE_SIZE = 1
for arguments in json.loads(sys.argv[1]):
    try:
        app(arguments, prog_name="clipadapter")
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            print(f"exit {end.code or 0}, touched: {pathlib.Path('touched').exists()}", file=stream, flush=True)
import urllib.request
try:
    urllib.request.urlopen("http://127.0.0.1:1")
except OSError:
    print("touched:", pathlib.Path("touched").exists())
"""
"""Runs commands in one process. Each writes to both streams how it ended; the last line shows that calls are seen."""


@pytest.mark.slow
def test_fit_and_predict_textiles_without_a_network(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    dataset = textiles()
    expected = {"flawless fabric": "flawless", "fabric with a global defect": "global"}
    for label, folder in expected.items():
        paths = [sample.path for sample in dataset.samples if sample.label == label][:10]
        for i, path in enumerate(paths):
            target = tmp_path / ("shots" if i < 5 else "new") / folder / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (tmp_path / "names.json").write_text(json.dumps({folder: label for label, folder in expected.items()}))
    lines = [
        ["fit", "shots", "--out", "model", "--encoder", "lite", "--class-names", "names.json", "--json"],
        ["predict", "model", "new", "--json"],
    ]

    command = [sys.executable, "-c", CUT, json.dumps(lines)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    ends = ["exit 0, touched: False"] * 2
    for stream in (process.stdout, process.stderr):
        assert [line for line in stream.splitlines() if line.startswith("exit ")] == ends, process.stderr
    assert process.stdout.endswith("\ntouched: True\n")
    fitted, predicted, _ = process.stdout.split("exit ", maxsplit=2)
    assert json.loads(fitted)["shots"] == dict.fromkeys(sorted(expected), 5)
    output, output_of_predict, _ = process.stderr.split("exit ", maxsplit=2)
    of_encoder, of_quality = output.splitlines()  # no other library has a say
    assert of_encoder.startswith("encoder lite: ") and of_quality.startswith("the model looks ")
    assert output_of_predict.splitlines()[1:] == []
    answers = [json.loads(line) for line in predicted.splitlines()[1:]]
    right = [expected[one["label"]] in one["source"].removeprefix("new") for one in answers]
    assert len(right) == 10
    assert sum(right) >= 8
