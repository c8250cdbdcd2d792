import os
from pathlib import Path

import pytest

from clipadapter.data import Sample, list_images, load_dataset
from clipadapter.data.folders import read_folder
from clipadapter.data.load import read_listing
from clipadapter.errors import DataError, DataWarning, InputError, UnknownNameError


def reasons(root):
    return {path.relative_to(root).as_posix(): reason for path, reason in read_listing(root).left_out}


@pytest.mark.parametrize("name", ["two\nlines", "tab\tname", "escape\x1b[2J"])
def test_class_names_with_control_characters_are_refused(tmp_path, put, name):
    put(tmp_path / "cat" / "1.jpg")
    put(tmp_path / name / "1.jpg")
    with pytest.raises(InputError, match="the class name '.*' has a line break or another control character: rename"):
        load_dataset(tmp_path)


def test_class_folders_are_sorted_and_nested_files_belong_to_the_first_level(tmp_path, put):
    for name in ("dog/2.jpg", "dog/1.JPG", "cat/deep/er/3.png", "Zebra/z.webp"):
        put(tmp_path / name)
    dataset = load_dataset(tmp_path)
    assert dataset.name == tmp_path.name and dataset.root == tmp_path
    assert dataset.class_names == ("Zebra", "cat", "dog")
    assert dataset.samples == (
        Sample(tmp_path / "Zebra/z.webp", "Zebra", "all"),
        Sample(tmp_path / "cat/deep/er/3.png", "cat", "all"),
        Sample(tmp_path / "dog/1.JPG", "dog", "all"),
        Sample(tmp_path / "dog/2.jpg", "dog", "all"),
    )
    assert load_dataset(str(tmp_path)) == dataset
    link = tmp_path.with_name(f"{tmp_path.name}-link")
    link.symlink_to(tmp_path)  # a link to the root is a root
    assert load_dataset(link).paths[0] == link / "Zebra/z.webp"


def test_parts_above_the_classes(tmp_path, put):
    for name in ("train/cat/1.jpg", "train/dog/2.jpg", "Valid/cat/3.jpg", "test/eel/4.jpg", "extra/x/5.jpg"):
        put(tmp_path / name)
    dataset = load_dataset(tmp_path)
    assert dataset.splits == ("train", "val", "test")
    assert dataset.class_names == ("cat", "dog", "eel")
    labels = [("cat", "train"), ("dog", "train"), ("cat", "val"), ("eel", "test")]
    assert [(sample.label, sample.split) for sample in dataset.samples] == labels
    with pytest.raises(DataError, match="has no split 'dev'; it has: train, val, test"):
        dataset.split("dev")
    assert dataset.split("test").paths == [tmp_path / "test/eel/4.jpg"]
    assert dataset.split("test").class_names == dataset.class_names
    assert reasons(tmp_path) == {"extra": "folder next to train, val and test"}


def test_a_flat_folder_has_no_labels_and_may_lie_beside_labelled_parts(tmp_path, put):
    for name in ("flat/b.jpg", "flat/a.png", "parts/train/cat/1.jpg", "parts/train/dog/2.jpg", "parts/test/3.jpg"):
        put(tmp_path / name)
    dataset = load_dataset(tmp_path / "flat")
    assert dataset.paths == [tmp_path / "flat/a.png", tmp_path / "flat/b.jpg"]
    assert dataset.class_names == ()
    with pytest.raises(DataError, match=r"2 of 2 pictures .* have no label: .*a\.png"):
        dataset.labels  # noqa: B018
    assert [sample.label for sample in load_dataset(tmp_path / "parts").samples] == ["cat", "dog", None]


def test_files_that_are_not_pictures_are_left_out_with_the_reason(tmp_path, put):
    for name in ("cat/1.jpg", "dog/a/1.jpg", "cat/.hidden.jpg", ".git/x/1.jpg", "stray.jpg"):
        put(tmp_path / name)
    assert relative_paths(tmp_path, list_images(tmp_path)) == ["cat/1.jpg", "dog/a/1.jpg", "stray.jpg"]
    for name in ("cat/notes.txt", "cat/drawing.svg", "dog/form.PDF", "cat/no_extension"):
        (tmp_path / name).write_text("x")
    (tmp_path / "eel").mkdir()
    assert len(load_dataset(tmp_path).samples) == 2
    assert load_dataset(tmp_path).class_names == ("cat", "dog")
    assert reasons(tmp_path) == {
        ".git": "hidden",
        "cat/.hidden.jpg": "hidden",
        "cat/drawing.svg": "unsupported type (SVG)",
        "cat/no_extension": "not an image file",
        "cat/notes.txt": "not an image file",
        "dog/form.PDF": "unsupported type (PDF)",
        "eel": "folder without pictures",
        "stray.jpg": "not in a class folder",
    }


@pytest.fixture
def links(tmp_path, put):
    """A data set whose pictures lie outside, as DVC, git-annex and the cache of the Hub make them."""
    root = tmp_path / "root"
    put(tmp_path / "outside/9f86d0.jpg")
    put(root / "cat/1.jpg")
    put(root / "dog/2.jpg")
    (root / "dog/3.jpg").symlink_to("../cat/1.jpg")
    (root / "dog/out.jpg").symlink_to(tmp_path / "outside/9f86d0.jpg")
    (root / "fox").symlink_to(tmp_path / "outside")
    return root


def relative_paths(root, paths):
    return [path.relative_to(root).as_posix() for path in paths]


def test_links_are_followed_but_on_request_not_out_of_the_folder(links):
    expected = ["cat/1.jpg", "dog/2.jpg", "dog/3.jpg", "dog/out.jpg", "fox/9f86d0.jpg"]
    assert relative_paths(links, load_dataset(links).paths) == expected
    assert relative_paths(links, list_images(links)) == expected
    assert reasons(links) == {}
    listing = read_folder(links, follow_links=False)
    assert relative_paths(links, listing.dataset.paths) == ["cat/1.jpg", "dog/2.jpg", "dog/3.jpg"]
    assert {path.relative_to(links).as_posix(): reason for path, reason in listing.left_out} == {
        "dog/out.jpg": "link that leads out of the folder",
        "fox": "link that leads out of the folder",
    }
    assert relative_paths(links, list_images(links, follow_links=False)) == ["cat/1.jpg", "dog/2.jpg", "dog/3.jpg"]


def test_links_to_nothing_and_loops_are_left_out_with_a_warning_per_kind(links):
    (links / "dog/gone.jpg").symlink_to("nothing.jpg")
    (links / "dog/me.jpg").symlink_to("me.jpg")
    (links / "dog/up").symlink_to(links)
    with pytest.warns(DataWarning) as caught:
        assert len(load_dataset(links).samples) == 5
    assert [str(warning.message) for warning in caught] == [
        f"links to files that do not exist, perhaps because their content was not fetched, are left out: 1 "
        f"({links / 'dog/gone.jpg'})",
        f"links that lead to themselves or to a folder above them are left out: 2 ({links / 'dog/me.jpg'}, "
        f"{links / 'dog/up'})",
    ]
    assert reasons(links) == {
        "dog/gone.jpg": "link to a file that does not exist",
        "dog/me.jpg": "link that leads to itself or to a folder above it",
        "dog/up": "link that leads to itself or to a folder above it",
    }


def test_a_data_set_of_links_to_nothing_says_so(tmp_path):
    for name in ("cat/1.jpg", "dog/1.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to("../.git/annex/objects/1.jpg")
    with (
        pytest.warns(DataWarning, match="content was not fetched"),
        pytest.raises(DataError, match=r"no pictures in .* \(left out: .*2 x link to a file that does not exist"),
    ):
        load_dataset(tmp_path)


def test_folders_that_link_to_each_other_are_read_once(tmp_path, put):
    for i in range(20):
        put(tmp_path / f"folders/{i}/{i}.jpg")
    for i in range(19):
        for name in ("x", "y"):
            (tmp_path / f"folders/{i}/{name}").symlink_to(tmp_path / f"folders/{i + 1}")
    put(tmp_path / "data/dog/1.jpg")
    (tmp_path / "data/cat").symlink_to(tmp_path / "folders/0")
    assert [path.name for path in load_dataset(tmp_path / "data").paths[:20]] == [f"{i}.jpg" for i in range(20)]
    assert reasons(tmp_path / "data")["cat/y"] == "link to a folder that is read already"


def test_names_of_any_alphabet_and_even_broken_ones(tmp_path, put):
    put(tmp_path / "café/写真 🍕.jpg")
    broken = Path(os.fsdecode(os.fsencode(tmp_path) + b"/dog\xe9/caf\xe9.jpg"))
    try:
        broken.parent.mkdir()
        broken.touch()
    except OSError:
        pytest.skip("this file system takes valid names only")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("café", "dog\\udce9")  # names that can be written
    assert [os.fsencode(path.name) for path in dataset.paths] == ["写真 🍕.jpg".encode(), b"caf\xe9.jpg"]


def test_invalid_sources_raise_errors_with_advice(tmp_path, put):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("x")
    put(tmp_path / "single/cat/1.jpg")
    put(tmp_path / "photo.jpg")
    for name, message in (
        ("empty", r"there are no pictures in '.*empty'; expected one folder per class"),
        ("texts", r"no pictures in '.*texts' \(left out: 1 x not an image file\)"),
        ("single", "has only one class, 'cat', but at least two are needed; expected"),
        ("singel", r"there is no folder or file '.*singel'\. Did you mean '.*single'\?"),
        ("no/where", r"Even '.*no' does not exist"),
        ("photo.jpg", "neither a folder nor a table; expected"),
    ):
        with pytest.raises(DataError, match=message):
            load_dataset(tmp_path / name)


def test_rename_keeps_order_and_refuses_clashes(tmp_path, put):
    for name in ("n1/1.jpg", "n2/1.jpg", "n3/1.jpg"):
        put(tmp_path / name)
    dataset = load_dataset(tmp_path)
    renamed = dataset.rename({"n1": "zebra", "n3": "ant"})
    assert renamed.class_names == ("zebra", "n2", "ant")
    assert renamed.labels == ["zebra", "n2", "ant"]
    assert dataset.rename({"n1": "n2", "n2": "n1"}).class_names == ("n2", "n1", "n3")
    with pytest.raises(DataError, match="'n1' and 'n2' would both be called 'n2'"):
        dataset.rename({"n1": "n2"})
    with pytest.raises(UnknownNameError, match=r"no class is called 'n4'\. Known: n1, n2, n3"):
        dataset.rename({"n4": "x"})
    with pytest.raises(InputError, match=r"the class name 'a\\ncat' has a line break"):
        dataset.rename({"n1": "a\ncat"})
