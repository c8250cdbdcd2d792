"""What ``clipadapter serve`` refuses before it starts; tests/serve/test_process.py has the other tests."""

import dataclasses
import logging
import subprocess
import sys

import pytest

from clipadapter.cli.commands.serve import command
from clipadapter.errors import install_command
from clipadapter.serve import Limits
from clipadapter.serve.logs import LOGGERS


@pytest.fixture(autouse=True)
def quiet():
    """The command sets up logs for the whole process: what they were comes back."""
    before = [(one, one.handlers[:], one.propagate, one.level) for one in map(logging.getLogger, LOGGERS)]
    yield
    logging.captureWarnings(False)
    for one, handlers, propagate, level in before:
        one.handlers[:], one.propagate = handlers, propagate
        one.setLevel(level)


@pytest.mark.parametrize("text", ["", "  \n", "two words", "tön"])
def test_a_token_is_one_plain_word(run, tmp_path, text):
    (tmp_path / "token").write_text(text, encoding="utf-8")
    result = run("serve", tmp_path, "--token-file", tmp_path / "token")
    assert result.exit_code == 1 and "holds no token" in result.stderr
    result = run("serve", tmp_path, env={"CLIPADAPTER_TOKEN": text})
    assert result.exit_code == 1 and "CLIPADAPTER_TOKEN holds no token" in result.stderr


def test_a_request_can_not_bring_more_than_the_queue_holds(run, tmp_path):
    result = run("serve", tmp_path, "--queue", "8")
    assert result.exit_code == 1 and "the queue holds 8" in result.stderr


def test_formats_are_checked_before_a_model_is_opened(run, tmp_path):
    result = run("serve", tmp_path, "--formats", "PNG, jpg")
    assert result.exit_code == 1 and "'jpg'" in result.stderr and "'png'" not in result.stderr
    assert "give some of jpeg, png, webp, gif, bmp, tiff, ppm, avif, jpeg2000, heic" in result.stderr


def test_defaults_are_those_of_the_limits():
    defaults = command.make_context("serve", ["model"]).params
    for limit in dataclasses.fields(Limits):
        assert defaults.get(limit.name, limit.default) == limit.default, limit.name


def test_a_missing_extra_is_named(tmp_path):
    code = """
import sys
sys.modules["fastapi"] = None
sys.argv = ["clipadapter", "serve", "x.onnx"]
from clipadapter.cli.app import main
main()
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 1 and install_command("serve") in found.stderr
