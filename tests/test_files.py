import csv
import io
import os
from pathlib import Path

import pytest

from clipadapter.errors import DataError, InputError
from clipadapter.files import csv_text, folder_without_links, path_without_links, suggest_path, write_atomically


def test_a_file_is_written_with_its_folder_and_nothing_else(tmp_path):
    assert write_atomically(tmp_path / "new" / "a.txt", "größer").read_bytes() == "größer".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")

    def fail(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(InputError, match="No space left"):
        write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", b"new")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_can_be_made_again_is_not_synced(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", None)
    assert write_atomically(tmp_path / "a", b"new", sync=False).read_bytes() == b"new"


def test_a_folder_in_the_way_is_an_error_and_nothing_is_left(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="a place you may write to"):
        write_atomically(tmp_path / "a", b"new")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "text"


@pytest.mark.parametrize("name", ["link", "link/inside", "folder/link", "folder/link/inside", "file/inside", "pipe"])
def test_what_belongs_to_the_program_is_no_link(name, tmp_path):
    base = tmp_path / "a link that a person named"
    base.symlink_to(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in ("link", "folder/link"):
        (tmp_path / path).symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    parts = name.split("/")
    wrong = parts[: parts.index("link") + 1] if "link" in parts else parts[:1]
    words = "is a link" if "link" in parts else "is no folder" if parts[0] == "file" else "is no file"
    with pytest.raises(DataError, match=f"{'/'.join(wrong)} {words}.*remove it"):
        path_without_links(base, *parts, error=DataError)


@pytest.mark.parametrize("name", ["", "folder", "folder/file", "folder/new", "new/new"])
def test_what_need_not_exist_has_a_path(name, tmp_path):
    base = tmp_path / "a link that a person named"
    base.symlink_to(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    assert path_without_links(base, *filter(None, name.split("/"))) == base / name


def test_no_link_is_below_a_folder_of_the_program(tmp_path):
    (tmp_path / "own" / "sub").mkdir(parents=True)
    assert folder_without_links(tmp_path, "own") == tmp_path / "own"
    (tmp_path / "own" / "sub" / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"own/sub/link is a link \(link -> "):
        folder_without_links(tmp_path, "own")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "＝", "＋", "－", "＠"])
def test_no_text_of_a_csv_table_is_a_formula(start):
    text = f'{start}cmd|"/C calc"!A0'
    ((cell, number),) = csv.reader(io.StringIO(csv_text([(text, -1.5)])))
    assert cell == f"'{text}" and number == "-1.5"


def test_no_row_of_a_csv_table_begins_inside_a_text():
    assert csv_text([("x\r=1+1", "a\n=1+1")]) == 'x =1+1,"a\n=1+1"\n'


@pytest.mark.parametrize(
    ("missing", "meant"),
    [
        ("phot.jpg", "photo.jpg"),
        ("PHOTO.JPG", "photo.jpg"),
        ("pisc/cat/1.jpg", "pics/cat/1.jpg"),
        ("pics/cta", "pics/cat"),
        ("pisc/dog/1.jpg", None),  # nothing of this name is in the folder of the similar name
        ("other.txt", None),
        ("nowhere/at/all", None),
    ],
)
def test_a_misspelt_path_suggests_what_exists(missing, meant, tmp_path, monkeypatch):
    (tmp_path / "pics" / "cat").mkdir(parents=True)
    for name in ("photo.jpg", "pics/cat/1.jpg"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert suggest_path(Path(missing)) == (f" Did you mean '{Path(meant)}'?" if meant else "")
    assert suggest_path(tmp_path / missing) == (f" Did you mean '{tmp_path / meant}'?" if meant else "")
