import re
import shutil

import pytest

from clipadapter import errors
from clipadapter.data import load_dataset
from clipadapter.data.load import read_listing
from clipadapter.errors import DataError, MissingExtraError, install_command


@pytest.fixture
def package(tmp_path, monkeypatch):
    package = pytest.importorskip("datasets")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "tables")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    package.disable_progress_bars()
    yield package
    package.enable_progress_bars()


@pytest.fixture
def folder(tmp_path, put):
    """A folder with train and test of zebras (odd) and ants (even), every picture with a value of its own."""
    for part, start in (("train", 0), ("test", 10)):
        for i in range(4):
            put(tmp_path / "folder" / part / ("zebra" if i % 2 else "ant") / f"{i}.png", start + i)
    return tmp_path / "folder"


def table(package, folder, part="train", classes=("zebra", "ant"), labels=(1, 0, 1, 0)):
    """Four pictures kept inside a table."""
    paths = sorted((folder / part).rglob("*.png"), key=lambda path: path.name)
    pictures = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    features = package.Features({"image": package.Image(), "label": package.ClassLabel(names=list(classes))})
    return package.Dataset.from_dict({"image": pictures, "label": list(labels)}, features)


def test_pictures_that_are_files_are_used_where_they_lie(package, folder, tmp_path):
    dataset = load_dataset(f"hf:{folder}")
    assert dataset.class_names == ("ant", "zebra")
    assert dataset.splits == ("train", "test")
    assert {(s.path.relative_to(folder).as_posix(), s.label, s.split) for s in dataset.samples} == {
        (f"{part}/{name}/{i}.png", name, part)
        for part in ("train", "test")
        for i, name in enumerate(("ant", "zebra", "ant", "zebra"))
    }
    assert not (tmp_path / "cache/clipadapter/hf").exists()


def test_pictures_in_a_table_become_files_byte_by_byte(package, folder, tmp_path):
    tables = {"train": table(package, folder), "validation": table(package, folder, "test")}
    package.DatasetDict(tables).save_to_disk(tmp_path / "saved")
    dataset = load_dataset(f"hf:{tmp_path / 'saved'}")
    assert dataset.class_names == ("zebra", "ant")
    assert dataset.splits == ("train", "val")
    assert dataset.split("val").labels == ["ant", "zebra", "ant", "zebra"]
    originals = [folder / "test" / ("zebra" if i % 2 else "ant") / f"{i}.png" for i in range(4)]
    assert [path.read_bytes() for path in dataset.split("val").paths] == [path.read_bytes() for path in originals]
    assert all(path.is_relative_to(tmp_path / "cache/clipadapter/hf") for path in dataset.paths)


def test_an_interrupted_run_continues_and_a_complete_one_is_not_repeated(package, folder, tmp_path, monkeypatch):
    table(package, folder).save_to_disk(tmp_path / "saved")
    first = load_dataset(f"hf:{tmp_path / 'saved'}")
    assert first.splits == ("all",)
    paths, written = first.paths, [path.read_bytes() for path in first.paths]
    paths[0].unlink()
    paths[1].write_bytes(written[1][:-9])
    (paths[0].parent / "whole").unlink()
    kept = paths[2].stat().st_ino
    assert load_dataset(f"hf:{tmp_path / 'saved'}") == first
    assert [path.read_bytes() for path in paths] == written
    assert paths[2].stat().st_ino == kept
    monkeypatch.setattr(package.Dataset, "cast_column", None)  # would be needed to read the pictures
    assert load_dataset(f"hf:{tmp_path / 'saved'}") == first


def test_other_data_under_the_same_name_get_other_files(package, folder, tmp_path):
    table(package, folder).save_to_disk(tmp_path / "saved")
    before = load_dataset(f"hf:{tmp_path / 'saved'}")
    shutil.rmtree(tmp_path / "saved")
    table(package, folder, "test").save_to_disk(tmp_path / "saved")
    after = load_dataset(f"hf:{tmp_path / 'saved'}")
    assert not set(before.paths) & set(after.paths)


def test_unlabelled_rows_have_no_label_and_other_parts_are_left_out(package, folder, tmp_path):
    tables = {"train": table(package, folder, labels=(1, -1, None, 0)), "extra": table(package, folder)}
    package.DatasetDict(tables).save_to_disk(tmp_path / "saved")
    listing = read_listing(f"hf:{tmp_path / 'saved'}")
    assert listing.dataset.splits == ("train",)
    assert [sample.label for sample in listing.dataset.samples] == ["ant", None, None, "zebra"]
    left_out = [(str(path), reason) for path, reason in listing.left_out]
    assert left_out == [("extra", "not one of the splits train, val and test")]


def test_wrong_columns_and_a_set_that_cannot_be_had_are_named(package, folder, tmp_path):
    words = "the Hugging Face data set 'nobody/nothing@odd' can't be loaded: .*nobody/nothing"
    with pytest.raises(DataError, match=words):
        load_dataset("hf:nobody/nothing@odd")
    table(package, folder).remove_columns("label").save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"has the columns image \(Image\); it needs one column .* or one called label"):
        load_dataset(f"hf:{tmp_path / 'saved'}")
    one = table(package, folder)
    two = one.add_column("fine", one["label"]).cast_column("fine", one.features["label"])
    two.rename_column("label", "coarse").save_to_disk(tmp_path / "two")
    with pytest.raises(DataError, match=r"coarse \(ClassLabel\), fine \(ClassLabel\); .* or one called label"):
        load_dataset(f"hf:{tmp_path / 'two'}")


def test_a_missing_extra_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=re.escape(install_command("hf"))):
        load_dataset("hf:cifar10")
