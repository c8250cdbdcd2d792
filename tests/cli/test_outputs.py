"""What commands print, for people and as JSON: `outputs.txt` has it for a list of command lines, run in their order.

After a change that is meant, ``python -m tests.cli.test_outputs`` writes the file anew: read the difference.
Numbers that differ between machines are ``#``. Their values are the subject of other tests.
"""

import difflib
import json
import os
import re
import shlex
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageColor

from clipadapter.cli.app import app

FILE = Path(__file__).with_name("outputs.txt")
CHANGING = {"seconds", "fit_seconds", "encode_seconds", "size", "cache", "when", "fingerprint", "sd"}
"""Keys of JSON whose values are not shown."""


def draw(root):
    """Folders of noisy squares of three colours, no two alike, and a file that is no picture."""
    rng = np.random.default_rng(0)
    for part, colours, count in (
        ("data/train", "blue green red", 5),
        ("data/test", "blue green red", 2),
        ("new", "yellow", 3),
    ):
        for name in colours.split():
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.array(ImageColor.getrgb(name)) * 0.8 + rng.integers(0, 40, (12, 12, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    (root / "new" / "yellow" / "broken.png").write_bytes(b"no picture")


def mask(text):
    text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d", "DATE", text)
    text = re.sub(r"[-+]?\d+\.\d+(e[-+]\d+)?|\b\d+(?= ?(%|s\b))", "#", text)
    return re.sub(" {2,}", "  ", text)


def shape(value, key=""):
    """A value of JSON in short: of a list the first item, of a number that is no small integer only that it is one."""
    if key in CHANGING or isinstance(value, float):
        return "#" if value is not None else None
    if isinstance(value, dict):
        items = dict.fromkeys(value, "#") if key == "versions" else {name: shape(value[name], name) for name in value}
        return dict(sorted(items.items()))
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return mask(value) if isinstance(value, str) else value


def answer(line):
    """The exit code, unless it is 0, and what was printed."""
    done = CliRunner().invoke(app, shlex.split(line))
    here, text = f"{Path.cwd()}/", mask(done.stdout)
    if "--json" in line and done.stdout:
        documents = done.stdout.splitlines() if done.stdout.startswith('{"') else [done.stdout]
        text = "\n".join(json.dumps(shape(json.loads(document))) for document in documents)
    parts = [f"exit code {done.exit_code}"] * (done.exit_code != 0) + [text.strip(), mask(done.stderr).strip()]
    return "\n".join(line.rstrip() for part in parts if part for line in part.replace(here, "").splitlines())


def answers(lines):
    """The text of the file, made in a new folder."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.chdir(folder)
            draw(Path(folder))
            return "\n\n".join(f"$ {line}\n{answer(line)}" for line in lines) + "\n"
        finally:
            os.chdir(before)


@pytest.mark.slow
def test_commands_print_what_the_file_shows():
    expected = FILE.read_text(encoding="utf-8")
    found = answers(re.findall(r"^\$ (.*)$", expected, re.MULTILINE))
    assert not list(
        difflib.unified_diff(expected.splitlines(), found.splitlines(), "outputs.txt", "printed", lineterm="")
    )


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", XDG_CACHE_HOME=tempfile.mkdtemp())
    FILE.write_text(answers(re.findall(r"^\$ (.*)$", FILE.read_text(encoding="utf-8"), re.MULTILINE)), encoding="utf-8")
