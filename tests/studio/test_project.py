import errno
import json
import os
import re
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipadapter.data import load_dataset, read_class_names, scan
from clipadapter.data.folders import safe_folder_name
from clipadapter.errors import InputError
from clipadapter.studio import Project
from clipadapter.studio.actions import Actions, Tab
from clipadapter.studio.pictures import Upload, stored_file_name
from clipadapter.studio.project import normalize_class_name
from clipadapter.studio.session import Session


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def keys(project, name):
    return [one.key for one in project.contents.classes[name]]


def test_a_project_is_an_ordinary_data_set(project, upload):
    for i, name in enumerate(("cat", "a/b", "test", "Hütte 貓")):
        project.add_class(name)
        project.add_pictures(name, [upload("red", i), upload("blue", i)])
    data = load_dataset(project.root)
    assert sorted(data.class_names) == ["Hütte 貓", "a_b", "cat", "test_"] and len(data.paths) == 8
    assert scan(project.root).unreadable == ()
    names = read_class_names(project.root / ".studio" / "class_names.json")
    assert sorted(data.rename(names).class_names) == ["Hütte 貓", "a/b", "cat", "test"]


def test_a_picture_whose_name_is_used_gets_a_number_and_overwrites_nothing(project, png, tree):
    project.add_class("cat")
    (project.root / "cat" / "IMG.PNG").write_bytes(png("red"))  # by another program, and not read yet
    names = ["img.png", "img.png", "img-2.png"]
    result = project.add_pictures("cat", [Upload(name, png("blue", i)) for i, name in enumerate(names)])
    assert result.added == ["cat/img-2.png", "cat/img-3.png", "cat/img-2-2.png"]
    assert tree(project.root)["cat/IMG.PNG"] == png("red")
    project.undo()
    assert list(tree(project.root)) == ["cat/IMG.PNG"]
    project.add_pictures(None, [Upload("IMG.png", png("green", 5))])
    project.label_pictures([project.contents.unlabelled[0].key], "cat")
    assert set(tree(project.root)) == {"cat/IMG.PNG", "cat/IMG-2.png"}
    jpeg = png("red", 1, "JPEG")  # its bytes are kept
    project.add_pictures("cat", [Upload("Tabby 1.JPEG", jpeg), Upload("münchen.png", png("blue", 2))])
    assert tree(project.root)["cat/Tabby 1.JPEG"] == jpeg and (project.root / "cat" / "münchen.png").is_file()


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("../../../evil.png", "evil.png"),
        ("C:\\pictures\\cat.png", "cat.png"),
        ("/etc/passwd", "passwd.png"),
        ("..", "_.png"),
        ("", "picture.png"),
        (".png", "picture.png"),
        (".hidden.png", "_hidden.png"),
        ("a\0b\n\u202egnp.png", "a_b__gnp.png"),
        ("con.png", "con_.png"),
        ('what?<"x">.png', "what___x__.png"),
        ("photo.jpg", "photo.jpg"),  # the bytes are those of a PNG file, which readers see
        ("notes.txt", "notes.txt.png"),
        ("\ud800.png", "_.png"),
    ],
)
def test_a_name_from_a_browser_becomes_one_visible_file_of_the_class(project, png, name, stored):
    project.add_class("cat")
    assert project.add_pictures("cat", [Upload(name, png("red"))]).added == [f"cat/{stored}"]
    assert [path.name for path in (project.root / "cat").iterdir()] == [stored]
    assert {path.name for path in project.root.iterdir()} == {"cat", ".studio"}
    assert len(load_dataset(project.root, one_class=True).paths) == 1


@pytest.mark.parametrize(
    ("start", "suffix"), [(b"\x89PNG\r\n\x1a\n", ".png"), (b"GIF89a", ".gif"), (b"\0\0\0\x0cjP  \r\n\x87\n", ".jpg")]
)
def test_a_name_without_a_suffix_of_pictures_gets_that_of_the_format_or_jpg(start, suffix):
    assert stored_file_name(Upload("x.exe", start)) == f"x.exe{suffix}"


def test_a_picture_is_added_once_and_moved_to_another_class_only_on_request(project, upload):
    project.add_class("cat")
    project.add_class("dog")
    result = project.add_pictures("cat", [upload("red"), Upload("x.txt", b"x"), upload("red"), Upload("no.jpg", b"")])
    assert result.rejected == [("x.txt", "not an image"), ("no.jpg", "file is empty")] and len(result.added) == 1
    assert project.add_pictures("cat", [upload("red", name="again")]).duplicates == ["again"]
    result = project.add_pictures("dog", [upload("red")])
    assert result.added == [] and result.in_other_classes == {"cat": keys(project, "cat")}
    assert project.contents.classes["dog"] == () and len(keys(project, "cat")) == 1
    (key,) = result.in_other_classes["cat"]
    moved = project.label_pictures([key, key], "dog").added  # moved when asked, and once
    assert keys(project, "cat") == [] and keys(project, "dog") == moved and len(moved) == 1
    assert project.remove_pictures([*moved, *moved]) == 1


def test_a_class_is_renamed_with_its_folder(project, upload):
    project.add_class("cat")
    project.add_pictures("cat", [upload("red")])
    assert project.rename_class("cat", "Tiger / big") == "Tiger / big"
    assert keys(project, "Tiger / big")[0].startswith("Tiger _ big/")
    project.rename_class("Tiger / big", "tiger / big")
    assert list(project.contents.classes) == ["tiger / big"]
    with pytest.raises(InputError, match="no class 'cat'"):
        project.rename_class("cat", "x")
    project.add_class("dog")
    with pytest.raises(InputError, match="already"):
        project.rename_class("dog", "TIGER / BIG")


def test_a_folder_with_parts_is_learned_from_train_and_measured_on_test(tmp_path, png):
    for part in ("train", "test"):
        for name, colour in (("cat", "red"), ("dog", "blue")):
            place = tmp_path / part / name
            place.mkdir(parents=True)
            (place / "1.png").write_bytes(png(colour, part == "test"))
    with Project(tmp_path) as project:
        assert list(project.contents.classes) == ["cat", "dog"]
        assert {name: len(each) for name, each in project.contents.test.items()} == {"cat": 1, "dog": 1}
        project.add_class("cow")
        assert (tmp_path / "train" / "cow").is_dir()
        result = project.add_pictures("cow", [Upload("leak", png("red", 1))])
        assert result.rejected == [("leak", "it is one of the test pictures")]
        assert load_dataset(tmp_path).splits == ("train", "test")
        for name in ("cat", "cow", "dog"):
            project.remove_class(name)
        assert list(project.contents.classes) == [] and project.contents.class_root == "train"  # which is no class


def test_an_external_folder_is_not_changed(tmp_path, png, tree):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "1.png").write_bytes(png("red"))
    (outside / "deep" / "2.png").write_bytes(png("blue"))
    before = tree(outside)
    with Project(tmp_path / "p", outside) as project:
        project.add_class("cat")
        assert len(project.contents.unlabelled) == 2 and all(one.is_external for one in project.contents.unlabelled)
        project.label_pictures([project.contents.unlabelled[0].key], "cat")
        (left,) = project.contents.unlabelled
        assert project.remove_pictures([left.key]) == 0
    with Project(tmp_path / "p", outside) as project:  # the labelled picture is recognised after a restart
        assert len(project.contents.unlabelled) == 1
        project.undo()
        assert len(project.contents.unlabelled) == 2
    assert tree(outside) == before


def test_a_folder_that_can_not_be_opened_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        Project(tmp_path / "file")
    with pytest.raises(InputError, match="/ can't be a project, beside which its model is saved"):
        Project("/")
    with pytest.raises(InputError, match="there is no folder"):
        Project(tmp_path / "p", tmp_path / "nothing")
    (tmp_path / "p" / "pool").mkdir(parents=True)
    with pytest.raises(InputError, match="where every folder is a class"):
        Project(tmp_path / "p", tmp_path / "p" / "pool")
    with Project(tmp_path / "p"), pytest.raises(InputError, match="open in another studio"):
        Project(tmp_path / "p")


def test_refresh_reads_changes_of_other_programs_also_of_pictures_beside_class_folders(project, png):
    project.add_class("cat")
    (project.root / "loose.png").write_bytes(png("blue"))
    project.refresh()
    assert [one.key for one in project.contents.unlabelled] == ["loose.png"]
    project.label_pictures(["loose.png"], "cat")
    assert (project.root / "cat" / "loose.png").is_file() and not (project.root / "loose.png").exists()
    before = project.contents.revision
    (project.root / "dog").mkdir()
    (project.root / "dog" / "1.png").write_bytes(png("red"))
    project.refresh()
    assert list(project.contents.classes) == ["cat", "dog"] and project.contents.revision > before
    (project.root / "dog" / "1.png").unlink()
    with pytest.raises(InputError, match="does not exist any more"):
        project.refresh()
        project.remove_pictures(["dog/1.png"])


def test_concurrent_threads_lose_nothing(project, upload):
    project.add_class("a")
    project.add_class("b")

    def work(start):
        for i in range(start, start + 8):
            project.add_pictures("a" if i % 2 else "b", [upload("red", i)])

    threads = [threading.Thread(target=work, args=(8 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys(project, "a")) == len(keys(project, "b")) == 16
    for _ in range(32):
        project.undo()
    assert keys(project, "a") == keys(project, "b") == []


def test_undo_reports_what_it_could_not_move_back(project, upload):
    project.add_class("cat")
    project.add_pictures("cat", [upload("red")])
    project.remove_class("cat")
    (project.root / "cat").mkdir()  # by another program
    assert project.undo() == (
        "removing the class 'cat', but there is a new 'cat': the old one stays in .studio/trash/3/cat"
    )
    assert len(list((project.root / ".studio" / "trash" / "3" / "cat").iterdir())) == 1


JOURNAL = {"step": 1, "what": "", "moves": [], "folders": [], "before": {}, "after": {"$(touch x)": "name"}}


@pytest.mark.parametrize(
    "name",
    ["", "incoming", "incoming/1", "unlabelled", "trash", "journal.jsonl", "class_names.json", "settings.json", "lock"],
)
@pytest.mark.parametrize("target", ["folder", "file", "nothing"])
def test_no_link_in_the_studios_folder_is_followed(name, target, tmp_path, png):
    home, own = tmp_path / "home", tmp_path / "p" / ".studio"
    (home / "folder" / "sub").mkdir(parents=True)
    for path in ("file", "folder/.bashrc", "folder/sub/.hidden", "folder/picture.png"):
        (home / path).write_bytes(png("blue") if path.endswith("png") else b"one line without an end")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    if name not in ("", "journal.jsonl"):
        own.mkdir(parents=True)
        (own / "journal.jsonl").write_text(f'{json.dumps(JOURNAL)}\n{{"done": 1}}\n')
    (own / name).parent.mkdir(parents=True, exist_ok=True)
    (own / name).symlink_to(home / target)
    with pytest.raises(InputError, match=f"{re.escape(name)} is a link"):
        Project(tmp_path / "p").close()
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_an_unlabelled_picture_that_is_a_link_is_left_out(tmp_path, png):
    (tmp_path / "picture.png").write_bytes(png("blue"))
    folder = tmp_path / "p" / ".studio" / "unlabelled"
    folder.mkdir(parents=True)
    (folder / "link.png").symlink_to(tmp_path / "picture.png")
    (folder / "own.png").write_bytes(png("red"))
    with Project(tmp_path / "p") as project:
        assert [Path(one.key).name for one in project.contents.unlabelled] == ["own.png"]


def test_links_to_other_folders_are_not_followed(tmp_path, upload, png):
    (tmp_path / "elsewhere" / "cat").mkdir(parents=True)
    (tmp_path / "p" / "test" / "cat").mkdir(parents=True)
    (tmp_path / "p" / "test" / "cat" / "1.png").write_bytes(png("red"))
    (tmp_path / "p" / "train").symlink_to(tmp_path / "elsewhere")
    with Project(tmp_path / "p") as project:
        assert list(project.contents.classes) == []
        with pytest.raises(InputError, match="is outside the folder"):
            project.add_class("dog")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["cat"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text there")
def test_file_names_that_are_not_valid_text_can_be_shown_and_changed(tmp_path, png):
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    (place / os.fsdecode(b"\xe9.png")).write_bytes(png("red"))
    with Project(tmp_path) as project:
        name = next(iter(project.contents.classes))
        (key,) = keys(project, name)
        assert (name + key).encode() and name == "caf\\udce9"
        project.add_class("cat")
        assert project.label_pictures([key], "cat").added
        project.undo()
        assert project.remove_pictures([key]) == 1 and project.undo() and keys(project, name) == [key]
        assert project.rename_class(name, "caf\u00e9") and len(keys(project, "caf\u00e9")) == 1


def test_a_new_journal_uses_no_number_of_existing_files(tmp_path, upload):
    with Project(tmp_path / "p") as project:
        project.add_class("cat")
        project.add_pictures("cat", [upload("red")])
        project.remove_class("cat")
    (tmp_path / "p" / ".studio" / "journal.jsonl").unlink()
    with Project(tmp_path / "p") as project:
        project.add_class("cat")
        project.add_class("dog")
        project.remove_class("cat")
        assert list(project.contents.classes) == ["dog"]
        assert project.undo() == "removing the class 'cat'" and list(project.contents.classes) == ["cat", "dog"]


# ---- Names ----


@pytest.mark.parametrize(
    ("name", "used", "folder"),
    [
        ("Tüpfel 貓 🐈", [], "Tüpfel 貓 🐈"),
        ("../../etc/passwd", [], "__.._etc_passwd"),
        ("CON", [], "CON_"),
        ("test", [], "test_"),
        ("Train", [], "Train_"),
        ("cat", ["Cat", "cat-2"], "cat-3"),
        ("caf\u00e9", ["cafe\u0301"], "caf\u00e9-2"),
    ],
)
def test_a_folder_has_the_name_of_its_class_where_that_is_safe_and_free(name, used, folder):
    assert safe_folder_name(name, used) == folder


@given(st.text(max_size=300))
def test_a_class_name_is_one_line_of_composed_letters_or_an_error(text):
    try:
        name = normalize_class_name(text)
    except InputError:
        return
    assert name and name == name.strip() and len(name) <= 120
    assert name == unicodedata.normalize("NFC", name)
    assert not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    assert normalize_class_name(name) == name


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "needs a name"), ("  \n", "needs a name"), ("\0", "needs a name"), ("x" * 121, "at most 120 letters")]
    + [(" cat ", "a class 'Cat' already"), ("caf\u00e9", "a class 'cafe\u0301' already")],
)
def test_an_empty_long_or_used_class_name_is_an_error(text, words):
    with pytest.raises(InputError, match=words):
        normalize_class_name(text, ["dog", "Cat", "cafe\u0301"])


# ---- Faults; tests/robustness/studio_faults.py has those of every operation on files ----


def test_a_step_whose_class_names_can_not_be_written_is_undone(tmp_path, monkeypatch):
    session = Session(Project(tmp_path / "p"), "toy", cache=None)
    actions, tab = Actions(session, lambda: str(tmp_path)), Tab()
    try:
        for classes, step in ((["a/b"], {"action": "add-class", "text": "c/d"}), (["a/b", "c/d"], {"action": "undo"})):
            session.project.add_class(classes[-1])
            with monkeypatch.context() as patch:
                patch.setattr("clipadapter.utils.files.keep_mode", no_space)
                actions.perform(tab, step)
            assert tab.note.is_error and "class_names.json: No space left" in tab.note.text
            names = json.loads((tmp_path / "p" / ".studio" / "class_names.json").read_text())
            assert list(session.project.contents.classes) == list(names.values()) == classes
    finally:
        session.close()


def test_temporary_files_of_a_killed_write_are_removed_at_the_next_opening(tmp_path, upload):
    with Project(tmp_path / "p") as project:
        project.add_class("cat")
        project.add_pictures("cat", [upload("red")])
    own = tmp_path / "p" / ".studio"
    left = [own / ".class_names.json-abcd_123", own / "incoming" / "7" / f".{'0a' * 10}-abcdefgh"]
    others = [own / "trash" / "9" / ".hidden", own / "incoming" / "7" / ".hidden", own / ".settings.json-old"]
    for path in [*left, *others]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    Project(tmp_path / "p").close()
    assert not any(path.exists() for path in left) and all(path.is_file() for path in others)
