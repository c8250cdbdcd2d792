import csv
import io
import json
import ntpath
import os
import sys
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipadapter.errors import DataError, InputError
from clipadapter.utils.files import (
    check_file_name,
    csv_text,
    folder_without_links,
    path_without_links,
    printable,
    safe_file_name,
    suggest_path,
    write_atomically,
)

NO_FILE_NAMES = (
    *("", " ", ".", "..", "../up", "a/b", "/etc/passwd", r"..\up", r"a\b", "C:", r"C:\x", "c:x", r"\\host\share"),
    *("//host/share", "~/x", ".hidden", "con", "NUL.txt", "aux", "COM1", "lpt9.json", "com¹", "CON .x", "CONIN$"),
    *("name.", "name ", " name", "what?", "a*", "a|b", '"a"', "<a>", "x" * 101, "é" * 51, "x" * 5000),
    *(f"a{control}b" for control in "\0\n\t\x1b\x7f\x9b\u202e\u2028\ud800"),
)


def test_a_file_is_written_with_its_folder_and_nothing_else(tmp_path):
    assert write_atomically(tmp_path / "new" / "a.txt", "größer").read_bytes() == "größer".encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("end", "error", "words"),
    [
        (OSError(28, "No space left on device"), InputError, "No space left"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_a_write_that_fails_or_is_interrupted_leaves_the_old_file_alone(end, error, words, tmp_path, monkeypatch):
    def fail(handle):
        raise end

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(error, match=words):
        write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


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


@pytest.mark.parametrize("name", NO_FILE_NAMES)
def test_a_name_that_is_no_file_name_on_some_system_is_an_error_and_gets_one_that_is(name):
    with pytest.raises(InputError, match="can't be the name of a file: choose another, such as '.+'"):
        check_file_name(name)
    assert check_file_name(safe_file_name(name)) == safe_file_name(name)


@pytest.mark.parametrize("name", ["few-shot", "Tüpfel 貓 🐈", "v1.2_x", "e\u0301", "console", "COM", "a..b", "x" * 100])
def test_other_names_are_file_names_as_they_are(name):
    assert check_file_name(name) == name


@settings(max_examples=50)
@given(st.text(max_size=300))
def test_every_text_has_a_file_name_that_stays_in_its_folder_on_every_system(text):
    name = safe_file_name(text)
    assert check_file_name(name) == name
    assert [Path(name).name, PureWindowsPath(name).name, ntpath.splitdrive(name)[1]] == [name] * 3
    is_reserved = ntpath.isreserved(name) if sys.version_info >= (3, 13) else PureWindowsPath(name).is_reserved()
    assert not is_reserved and not name.startswith(".") and len(name.encode()) <= 100


def test_printable_text_is_one_line_without_controls_and_keeps_all_scripts():
    controls = "".join(map(chr, (*range(32), *range(127, 160), 0x200E, 0x202E, 0x2028, 0x2066, 0xFEFF, 0xD800)))
    shown = printable(controls)
    assert shown.isprintable() and len(shown.splitlines()) == 1
    assert json.loads(f'"{shown}"') == controls  # the escapes of JSON
    kept = "Tüpfel 貓 👩\u200d🔬 می\u200cخواهم C:\\new\u202f1"
    assert printable(kept) == kept
