import csv
import io
from pathlib import Path

import pytest

from clipadapter.errors import InputError
from clipadapter.files import csv_text, suggest_path, write_atomically


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
