import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from clipadapter.data import load_dataset, read_class_names, scan
from clipadapter.data.images import _KINDS
from clipadapter.errors import InputError
from clipadapter.files import IMAGE_SUFFIXES
from clipadapter.studio import Project
from clipadapter.studio._pictures import Upload, stored_name


def keys(project, name):
    return [one.key for one in project.contents.classes[name]]


def test_what_is_written_is_an_ordinary_data_set(project, upload):
    for i, name in enumerate(("cat", "a/b", "test", "Hütte 貓")):
        project.add_class(name)
        project.add(name, [upload("red", i), upload("blue", i)])
    data = load_dataset(project.root)
    assert sorted(data.class_names) == ["Hütte 貓", "a_b", "cat", "test_"] and len(data.paths) == 8
    assert scan(project.root).unreadable == ()
    names = read_class_names(project.root / ".studio" / "class_names.json")
    assert sorted(data.rename(names).class_names) == ["Hütte 貓", "a/b", "cat", "test"]


def test_bytes_are_kept_and_names_are_not_trusted(project, png):
    project.add_class("cat")
    jpeg = png("red", 1, "JPEG")
    said = project.add("cat", [Upload("../../../evil.png", jpeg), Upload("", png("blue", 2))])
    assert said.refused == [] and len(said.keys) == 2
    files = sorted((project.root / "cat").iterdir())
    assert {path.read_bytes() for path in files} == {jpeg, png("blue", 2)}
    assert {path.suffix for path in files} == {".jpg", ".png"}
    assert not list(project.root.parent.glob("evil*"))


def test_every_kind_that_can_be_read_gets_a_suffix_that_is_found():
    known = [kind for kind, _, reader in _KINDS if reader is not None]
    starts = {
        "JPEG": b"\xff\xd8\xff",
        "PNG": b"\x89PNG\r\n\x1a\n",
        "WebP": b"RIFF0000WEBP",
        "GIF": b"GIF89a",
        "BMP": b"BM00000000",
        "TIFF": b"II*\0",
        "PPM": b"P6 ",
        "AVIF": b"0000ftypavif",
        "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    }
    assert set(starts) == set(known)
    for start in starts.values():
        assert stored_name(Upload("x.exe", start))[20:] in IMAGE_SUFFIXES


def test_what_is_no_picture_is_told_and_costs_nothing_else(project, upload):
    project.add_class("cat")
    said = project.add("cat", [Upload("x.txt", b"hello"), upload("red"), Upload("empty.jpg", b"")])
    assert said.refused == [("x.txt", "not an image"), ("empty.jpg", "file is empty")] and len(said.keys) == 1


def test_a_picture_is_once_in_a_class_and_in_no_second_one_unasked(project, upload):
    project.add_class("cat")
    project.add_class("dog")
    project.add("cat", [upload("red"), upload("red")])
    assert project.add("cat", [upload("red", name="again")]).twice == ["again"]
    said = project.add("dog", [upload("red")])
    assert said.keys == [] and said.elsewhere == [(keys(project, "cat")[0], "cat")]
    assert project.contents.classes["dog"] == () and len(keys(project, "cat")) == 1
    project.label([said.elsewhere[0][0]], "dog")  # moved when asked
    assert keys(project, "cat") == [] and len(keys(project, "dog")) == 1


def test_a_labelled_picture_leaves_those_to_label(project, upload):
    project.add_class("cat")
    project.add_unlabelled([upload("red"), upload("blue", 1)])
    first, second = project.contents.pool
    project.label([first.key], "cat")
    assert [one.stamp for one in project.contents.pool] == [second.stamp]
    project.add("cat", [Upload("same", second.path.read_bytes())])  # dropped into the class: it is the same picture
    assert project.contents.pool == () and len(keys(project, "cat")) == 2
    assert [label for _, label in project.add_unlabelled([upload("red")]).elsewhere] == ["cat"]


def test_every_step_is_undone_also_after_a_restart(tmp_path, upload, tree):
    root = tmp_path / "p"
    states = []
    with Project(root) as project:
        for act in (
            lambda: project.add_class("cat"),
            lambda: project.add_class("d/g"),
            lambda: project.add("cat", [upload("red"), upload("blue", 1)]),
            lambda: project.add_unlabelled([upload("green", 2)]),
            lambda: project.label([project.contents.pool[0].key], "d/g"),
            lambda: project.label([keys(project, "cat")[0]], "d/g"),
            lambda: project.remove([keys(project, "cat")[0]]),
            lambda: project.rename_class("d/g", "hund"),
            lambda: project.remove_class("cat"),
        ):
            states.append((tree(root), list(project.contents.classes), len(project.contents.pool)))
            act()
    for before in reversed(states):
        with Project(root) as project:
            assert project.undoable
            project.undo()
            assert (tree(root), list(project.contents.classes), len(project.contents.pool)) == before
    with Project(root) as project:
        assert project.undo() == "" and project.undoable == ""


def test_a_class_is_renamed_with_its_folder(project, upload):
    project.add_class("cat")
    project.add("cat", [upload("red")])
    assert project.rename_class("cat", "Tiger / big") == "Tiger / big"
    assert keys(project, "Tiger / big")[0].startswith("Tiger _ big/")
    project.rename_class("Tiger / big", "tiger / big")
    assert list(project.contents.classes) == ["tiger / big"]
    with pytest.raises(InputError, match="no class 'cat'"):
        project.rename_class("cat", "x")
    project.add_class("dog")
    with pytest.raises(InputError, match="already"):
        project.rename_class("dog", "TIGER / BIG")


def test_a_folder_with_parts_is_taught_in_train_and_judged_by_test(tmp_path, png):
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
        said = project.add("cow", [Upload("leak", png("red", 1))])
        assert said.refused == [("leak", "it is one of the test pictures")]
        assert load_dataset(tmp_path).splits == ("train", "test")


def test_pictures_beside_the_classes_are_to_be_labelled(tmp_path, png):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(png("red"))
    (tmp_path / "loose.png").write_bytes(png("blue"))
    with Project(tmp_path) as project:
        assert [one.key for one in project.contents.pool] == ["loose.png"]
        project.label(["loose.png"], "cat")
        assert (tmp_path / "cat" / "loose.png").is_file() and not (tmp_path / "loose.png").exists()


def test_a_folder_of_pictures_to_label_stays_as_it_is(tmp_path, png, tree):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "1.png").write_bytes(png("red"))
    (outside / "deep" / "2.png").write_bytes(png("blue"))
    before = tree(outside)
    with Project(tmp_path / "p", outside) as project:
        project.add_class("cat")
        assert len(project.contents.pool) == 2 and all(one.outside for one in project.contents.pool)
        project.label([project.contents.pool[0].key], "cat")
        assert len(project.contents.pool) == 1 and project.remove([project.contents.pool[0].key]) == 0
    with Project(tmp_path / "p", outside) as project:  # it is known for the same picture after a restart
        assert len(project.contents.pool) == 1
        project.undo()
        assert len(project.contents.pool) == 2
    assert tree(outside) == before


def test_what_cannot_be_opened_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is no folder"):
        Project(tmp_path / "file")
    with pytest.raises(InputError, match="there is no folder"):
        Project(tmp_path / "p", tmp_path / "nothing")
    (tmp_path / "p" / "pool").mkdir()
    with pytest.raises(InputError, match="where folders are classes"):
        Project(tmp_path / "p", tmp_path / "p" / "pool")
    with Project(tmp_path / "p"), pytest.raises(InputError, match="open in another studio"):
        Project(tmp_path / "p")


def test_what_others_do_to_the_folder_is_seen(project, png):
    project.add_class("cat")
    before = project.contents.revision
    (project.root / "dog").mkdir()
    (project.root / "dog" / "1.png").write_bytes(png("red"))
    assert list(project.refresh().classes) == ["cat", "dog"] and project.contents.revision > before
    (project.root / "dog" / "1.png").unlink()
    with pytest.raises(InputError, match="not there any more"):
        project.refresh()
        project.remove(["dog/1.png"])


def test_many_at_once_lose_nothing(project, upload):
    project.add_class("a")
    project.add_class("b")

    def work(start):
        for i in range(start, start + 8):
            project.add("a" if i % 2 else "b", [upload("red", i)])

    threads = [threading.Thread(target=work, args=(8 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys(project, "a")) == len(keys(project, "b")) == 16
    for _ in range(32):
        project.undo()
    assert keys(project, "a") == keys(project, "b") == []


KILLED = """
import sys
from pathlib import Path
from clipadapter.studio import Project
from clipadapter.studio._pictures import Upload
import io
from PIL import Image
project = Project(sys.argv[1])
project.add_class("cat")
for i in range(10_000):
    file = io.BytesIO()
    Image.new("RGB", (10 + i, 9), (i % 256, 0, 0)).save(file, "PNG")
    (key,) = project.add("cat", [Upload("x", file.getvalue())]).keys
    print(key, flush=True)
"""


def test_nothing_that_was_told_is_lost_by_a_kill(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "p")], stdout=subprocess.PIPE, text=True)
    told = [process.stdout.readline().strip() for _ in range(25)]
    process.kill()
    told += process.stdout.read().split()
    process.wait()
    process.stdout.close()
    with Project(tmp_path / "p") as project:
        there = set(keys(project, "cat"))
        assert set(told) <= there and len(there) - len(told) <= 1
        assert all(np.asarray(Image.open(project.root / key)).shape[0] == 9 for key in there)
        while project.undo():
            pass
        assert project.contents.classes == {}


def test_what_cannot_be_undone_is_told_and_where_it_is(project, upload):
    project.add_class("cat")
    project.add("cat", [upload("red")])
    project.remove_class("cat")
    (project.root / "cat").mkdir()  # by another program
    assert project.undo() == (
        "removing the class 'cat', but 'cat' is there anew: the old one stays in .studio/trash/3/cat"
    )
    assert len(list((project.root / ".studio" / "trash" / "3" / "cat").iterdir())) == 1


def test_train_is_no_class_when_its_last_class_is_removed(tmp_path, png):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.png").write_bytes(png("red"))
    with Project(tmp_path) as project:
        project.remove_class("cat")
        assert list(project.contents.classes) == [] and project.contents.home == "train"
        project.add_class("dog")
        assert (tmp_path / "train" / "dog").is_dir()


def test_class_folders_elsewhere_are_left_alone(tmp_path, upload, png):
    (tmp_path / "elsewhere" / "cat").mkdir(parents=True)
    (tmp_path / "p" / "test" / "cat").mkdir(parents=True)
    (tmp_path / "p" / "test" / "cat" / "1.png").write_bytes(png("red"))
    (tmp_path / "p" / "train").symlink_to(tmp_path / "elsewhere")
    with Project(tmp_path / "p") as project:
        assert list(project.contents.classes) == []
        with pytest.raises(InputError, match="leads out of the folder"):
            project.add_class("dog")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["cat"]


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text there")
def test_names_that_are_no_text_can_be_shown_and_changed(tmp_path, png):
    place = tmp_path / os.fsdecode(b"caf\xe9")
    place.mkdir()
    (place / os.fsdecode(b"\xe9.png")).write_bytes(png("red"))
    with Project(tmp_path) as project:
        name = next(iter(project.contents.classes))
        (key,) = keys(project, name)
        assert (name + key).encode() and name == "caf\\udce9"
        project.add_class("cat")
        assert project.label([key], "cat").keys
        project.undo()
        assert project.remove([key]) == 1 and project.undo() and keys(project, name) == [key]
        assert project.rename_class(name, "caf\u00e9") and len(keys(project, "caf\u00e9")) == 1


def test_a_picture_that_is_named_twice_is_moved_once(project, upload):
    for name in ("a", "b"):
        project.add_class(name)
    (key,) = project.add("a", [upload("red")]).keys
    moved = project.label([key, key], "b").keys
    assert len(moved) == 1 and project.remove([*moved, *moved]) == 1


def test_undo_leads_back_to_nothing_where_a_picture_was_removed_and_added_elsewhere(project, upload, tree):
    for name in ("a", "b"):
        project.add_class(name)
    project.add("a", [upload("red")])
    project.remove(keys(project, "a"))
    project.add("b", [upload("red")])
    while project.undo():
        pass
    assert tree(project.root) == {} and project.contents.classes == {}


def test_steps_without_an_older_journal_get_numbers_that_nothing_in_the_folder_has(tmp_path, upload):
    with Project(tmp_path / "p") as project:
        project.add_class("cat")
        project.add("cat", [upload("red")])
        project.remove_class("cat")
    (tmp_path / "p" / ".studio" / "journal.jsonl").unlink()
    with Project(tmp_path / "p") as project:
        project.add_class("cat")
        project.add_class("dog")
        project.remove_class("cat")
        assert list(project.contents.classes) == ["dog"]
        assert project.undo() == "removing the class 'cat'" and list(project.contents.classes) == ["cat", "dog"]
