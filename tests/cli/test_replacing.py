"""No command replaces a file that it did not write: each command with each kind of thing that its output may meet.

Refusals come before a picture is read, with exit code 1, and leave all as it was.
"""

import os
import stat

import numpy as np
import pytest
from PIL import Image

from clipadapter.utils.files import write_atomically

OWN_WORDS = "my own words"
FILES = {  # command: its output, and whether it has --force
    "report {model} {data} --no-curve --no-doctor --out {out}": (".html", True),
    "doctor {data} --encoder toy --html {out}": (".html", True),
    "explain {model} {photo} --out {out}": (".svg", True),
    "export {model} --format onnx --pictures {data} --out {out}": (".onnx", True),
    "export {model} --format openvino --pictures {data} --out {out}": (".xml", True),
    "monitor {model} {many} --reference {many} --plot {out}": (".pdf", True),
    "monitor {model} {many} --reference {many} --history {out}": (".jsonl", False),
    "predict {model} {data} --out {out}": (".csv", False),
    "predict {model} {photo} --out {out}": (".jsonl", False),
    "predict {model} {photo} {photo} --out {out}": (".parquet", False),
    "embed {data} --encoder toy --to {out}": (".parquet", False),
}
WITH_FORCE = [line for line, (_, has_force) in FILES.items() if has_force]
FOLDERS = {  # command: files that it writes into its folder
    "eval {model} {data} --plot-format png,pdf --out {out}": ["metrics.json", "confusion.pdf", "learning-curve.png"],
    "compare {train} {data} --encoder toy --heads gda --shots 1 --seeds 1 --out {out}": (
        ["runs.jsonl", "table.md", "accuracy.png"]
    ),
    "demo --data {noisy} --encoder toy --shots 1 --seeds 1 --out {out}": (
        ["runs.jsonl", "table.md", "accuracy.png", "answers.png"]
    ),
    "fit {train} --encoder toy --head zero-shot --out {out}": ["config.json", "README.md", "any.txt"],
    "simclr {train} --out {out}": ["notes.txt"],
    "bench run {suite} --data {noisy} --encoder toy --out {out}": ["runs.jsonl"],
    "pull someone/model --out {out}": ["config.json", "any.txt"],
}
SUITE = 'title = "Neighbours"\nheads = ["zero-shot"]\nshots = [1]\nseeds = [1]\n'


@pytest.fixture(scope="module", autouse=True)
def libraries():
    for name in ("onnx", "onnxruntime", "openvino", "pyarrow", "imagehash", "cleanlab"):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of pictures that are enough for a test of drift."""
    rng, folder = np.random.default_rng(1), tmp_path_factory.mktemp("many")
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def act(run, probe, noisy_squares, many, tmp_path):
    """A function that runs a command with an output."""
    (tmp_path / "own.toml").write_text(SUITE)
    places = {
        "model": probe,
        "many": many,
        "noisy": noisy_squares,
        "train": noisy_squares / "train",
        "data": noisy_squares / "test",
        "photo": noisy_squares / "test" / "red" / "0.png",
        "suite": tmp_path / "own.toml",
    }
    return lambda line, out, *more: run(*(part.format(out=out, **places) for part in line.split()), *more)


@pytest.fixture
def refuse(act, tmp_path, monkeypatch):
    """A function that runs a command which must be refused, before a picture is read, and returns the sentence."""

    def contents():
        found = [*tmp_path.rglob("*")]
        return {each: (each.lstat().st_mtime_ns, each.read_bytes() if each.is_file() else None) for each in found}

    def check(line, out, *more):
        monkeypatch.setattr("clipadapter.features.extraction.read_image_shrunk", None)
        before, done = contents(), act(line, out, *more)
        assert done.exit_code == 1 and done.stdout == "" and contents() == before
        return done.stderr.splitlines()[-1]

    return check


@pytest.mark.parametrize("line", FILES)
@pytest.mark.parametrize("kind", ["text", "folder", "link", "pipe", "below a file", "suffix"])
def test_a_file_of_another_origin_is_kept(kind, line, refuse, tmp_path):
    suffix, has_force = FILES[line]
    path, words = tmp_path / f"mine{suffix}", "exists and is no "
    if kind == "text":
        path.write_text(OWN_WORDS)
    elif kind == "folder":
        path.mkdir()
        words = "is a folder" if "export" in line else "is not a regular file"
    elif kind == "link":
        (tmp_path / "other").write_text(OWN_WORDS)
        path.symlink_to("other")
        words = "is a link"
    elif kind == "pipe":
        os.mkfifo(path)
        words = "is not a regular file"
    elif kind == "below a file":
        (tmp_path / "file").write_text(OWN_WORDS)
        path, words = tmp_path / "file" / path.name, "is not a folder that you may write to"
    else:
        path, words = tmp_path / "mine", "does not end with "
    error = refuse(line, path)
    assert words in error
    assert ("--force" in error) == (kind == "text" and has_force)


@pytest.mark.parametrize("line", WITH_FORCE)
def test_force_replaces_no_link(line, refuse, tmp_path):
    path = tmp_path / f"mine{FILES[line][0]}"
    (tmp_path / "other").write_text(OWN_WORDS)
    path.symlink_to("other")
    assert "is a link" in refuse(line, path, "--force")


@pytest.mark.parametrize("line", FILES)
def test_a_command_replaces_what_it_wrote_and_keeps_its_mode(line, act, tmp_path):
    path = tmp_path / f"mine{FILES[line][0]}"
    if line in WITH_FORCE:
        path.write_text(OWN_WORDS)
    before = os.umask(0o027)
    try:
        done = act(line, path, *(["--force"] if line in WITH_FORCE else []))
    finally:
        os.umask(before)
    assert done.exit_code in (0, 3), done.stderr  # 3: the pictures of monitor differ from the shots
    first = path.read_bytes()
    assert OWN_WORDS.encode() not in first
    if line not in WITH_FORCE:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o604)
    done = act(line, path)
    assert done.exit_code in (0, 3), done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    if "--history" in line:
        assert path.read_bytes().startswith(first) and len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("line", ["explain {model} {photo} --out {out}", "embed {out} --encoder toy --to {out}"])
def test_an_input_is_kept_even_with_force(line, refuse, tmp_path):
    path = tmp_path / ("photo.png" if "explain" in line else "data.parquet")
    if "explain" in line:
        Image.new("RGB", (12, 12)).save(path)
        error = refuse(line.replace("{photo}", str(path)), path, "--force")
    else:
        path.write_bytes(b"PAR1")
        error = refuse(line, path)
    assert "is an input" in error


def test_weights_without_their_graph_are_kept(refuse, tmp_path):
    (tmp_path / "mine.bin").write_text(OWN_WORDS)
    line = "export {model} --format openvino --pictures {data} --out {out}"
    assert "mine.bin exists and is no file of export" in refuse(line, tmp_path / "mine.xml")


@pytest.mark.parametrize(("line", "name"), [(line, name) for line, names in FOLDERS.items() for name in names])
def test_a_file_of_another_origin_in_the_folder_is_kept(line, name, refuse, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(OWN_WORDS)
    error = refuse(line, tmp_path / "out")
    assert any(words in error for words in (f"{name} exists and ", "holds other files than "))


@pytest.mark.parametrize("line", [line for line in FOLDERS if line.split()[0] in ("eval", "compare", "demo")])
def test_a_folder_is_written_again_by_its_command(line, act, tmp_path):
    for _ in range(2):
        done = act(line, tmp_path / "out")
        assert done.exit_code == 0, done.stderr
    assert {name for name in FOLDERS[line] if not (tmp_path / "out" / name).is_file()} == set()


def test_reports_of_a_study_replace_their_own_files_only(act, run, refuse, tmp_path):
    line, out = "bench run {suite} --data {noisy} --encoder toy --out {out}", tmp_path / "out"
    assert act(line, out).exit_code == 0
    for _ in range(2):
        assert run("bench", "report", "own", "--out", out).exit_code == 0
    for name in ("own.md", "own.csv", "own.tex", "own.html"):
        path = out / "reports" / name
        before = path.read_bytes()
        path.write_text(OWN_WORDS)
        if name == "own.csv":  # has no mark of its own
            (out / "reports" / "own.md").unlink()
        assert f"{name} exists and " in refuse("bench report own --out {out}", out)
        path.write_bytes(before)


def test_a_written_file_obeys_the_umask_and_an_older_one_keeps_its_mode(tmp_path):
    before = os.umask(0o077)
    try:
        path = write_atomically(tmp_path / "a", "1")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o666)
    assert stat.S_IMODE(write_atomically(path, "2").stat().st_mode) == 0o666
