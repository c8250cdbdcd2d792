"""The commands of docs/serving.md are run; its lists of metrics and limits are complete."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from clipadapter.cli.commands.serve import command

from .colours import GREY, RED
from .test_process import Running

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"<!-- run -->\n```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_commands_of_the_page_are_answered(files, tmp_path):
    (files / "colours.onnx").rename(files / "model.onnx")
    (tmp_path / "photo.jpg").write_bytes(RED)
    (tmp_path / "street.jpg").write_bytes(GREY)
    server = Running(files / "model.onnx")
    answers = []
    for line in LINES:
        here = line.replace("localhost:8000", f"127.0.0.1:{server.port}").replace("curl ", "curl -sS --fail-with-body ")
        done = subprocess.run(["bash", "-c", here], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        answers.append(json.loads(done.stdout))
    assert server.end() == 0
    server.close()
    first, second, models, third = answers
    assert [one["label"] for one in first["predictions"] + third["predictions"]] == ["red", "red"]
    assert [one["label"] for one in second["predictions"]] == ["red", None]
    assert [one["name"] for one in models["models"]] == ["model"]
    shown = json.loads(re.search(r"```json\n(\{\"model\".*?)```", PAGE, re.DOTALL).group(1))
    assert list(shown) == list(first) and list(shown["predictions"][0]) == list(first["predictions"][0])


def test_metrics_of_the_page_are_those_of_the_server(serve):
    text = serve().get("/metrics").text
    named = set(re.findall(r"`(clipadapter_\w+)`", PAGE))
    there = {re.sub("_total$", "", name) for name in re.findall(r"^# TYPE (clipadapter_\w+)", text, re.MULTILINE)}
    assert {re.sub("_total$", "", name) for name in named} == {name for name in there if not name.endswith("_created")}


def test_limits_of_the_page_are_those_of_the_command():
    for name, default in re.findall(r"^\| `--([a-z-]+)` \|.*\| ([\d.]+)[^|]*\|$", PAGE, re.MULTILINE):
        option = next(one for one in command.params if f"--{name}" in one.opts)
        scale = {"max-bytes": 1 << 20, "max-pixels": 10**6}.get(name, 1)
        assert option.default == float(default) * scale, name
