"""What commands print, for people and as JSON: ``outputs*.txt`` have it for lists of command lines, run in their order.

After a change that is meant, ``python -m tests.cli.test_outputs`` writes the files anew: read the difference.
Numbers that differ between machines are ``#``. Their values are the subject of other tests.
"""

import difflib
import json
import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from PIL import Image, ImageColor

from clipadapter.cli.app import app

from ..conftest import save_work
from ..data.stand_in import make_stand_in

FILES = sorted(Path(__file__).parent.glob("outputs*.txt"))
NOTHING_IS_READ = "# Refused before a picture is read, and nothing is written."
"""From this line of a file on."""
CHANGING = {"seconds", "fit_seconds", "encode_seconds", "size", "cache", "when", "fingerprint", "sd", "loss"}
"""Keys of JSON whose values are not shown."""
TEXTS = {
    "file": "",
    "photo.jpg": "",
    "fake.onnx": "",
    "empty.txt": "",
    "cups.txt": "cup\nmug\n",
    "names.json": '{"red": "ruby", "blue": "sea"}',
    "bleu.json": '{"bleu": ["the blue sky"]}',
    "t.json": '{"red": ["a red wall", "red paint"], "blue": ["the sky", "a blue wall"], "green": ["a lawn", "grass"]}',
    "list.csv": "path\ndata/test/red/0.png\ndata/test/blue/0.png\n",
    "lines.jsonl": '{"a": 1}\n',
    "own.toml": 'title = "Neighbours"\nheads = ["zero-shot", "prototype", "knn"]\nshots = [1, 2]\nseeds = [1, 2]\n',
    "few/green/0.png": "",
    "new/yellow/broken.png": "no picture",
    "mixed/train/red/empty.jpg": "",
    "mixed/train/red/notes.txt": "hello",
    **{f"many/red/{i:02}.jpg": "" for i in range(15)},
    **{f"damaged/{name}/0.png": "" for name in ("blue", "red")},
}


def draw(root):
    """Folders of noisy squares, no two alike but one pair, and other files."""
    rng = np.random.default_rng(0)
    for part, colours, count in (
        ("data/train", "blue green red", 5),
        ("data/test", "blue green red", 2),
        ("new", "yellow", 3),
        ("mixed/train", "blue red", 3),
        ("mixed/test", "blue red", 1),
        ("one", "red", 2),
        ("few", "blue", 3),
        ("few", "red", 1),
    ):
        for name in colours.split():
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.array(ImageColor.getrgb(name)) * 0.8 + rng.integers(0, 40, (12, 12, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    shutil.copy(root / "mixed/train/red/0.png", root / "mixed/train/blue/same.png")
    (root / "empty").mkdir()
    make_stand_in("dtd", root / "sets")
    for name, text in TEXTS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    pyarrow.parquet.write_table(pyarrow.table({"path": ["a.jpg"]}), root / "file.parquet")


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


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def answers(text, monkeypatch):
    """The text of a file, made in a new folder."""
    before, parts, is_read = Path.cwd(), [], True
    save_work(monkeypatch)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
        try:
            os.chdir(folder)
            draw(Path(folder))
            for line in re.findall(rf"^(?:[$!] .*|{NOTHING_IS_READ})$", text, re.MULTILINE):
                parts.append(line)
                if line == NOTHING_IS_READ:
                    monkeypatch.setattr("clipadapter.features.extraction.read_image_shrunk", None)
                    is_read, files = False, contents(Path(folder))
                elif line[0] == "!":
                    shutil.copy(*line.split()[2:])
                elif line[0] == "$":
                    parts[-1] += f"\n{answer(line[2:])}"
                    assert is_read or contents(Path(folder)) == files, line
            return "\n\n".join(parts) + "\n"
        finally:
            os.chdir(before)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_commands_print_what_the_file_shows(file, monkeypatch):
    expected = file.read_text(encoding="utf-8")
    printed = answers(expected, monkeypatch)
    assert not list(
        difflib.unified_diff(expected.splitlines(), printed.splitlines(), file.name, "printed", lineterm="")
    )


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    for file in FILES:
        with pytest.MonkeyPatch.context() as patch:
            file.write_text(answers(file.read_text(encoding="utf-8"), patch), encoding="utf-8")
