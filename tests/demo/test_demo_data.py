"""The pictures of the demo: what is said of them, and named data sets."""

import shutil
import tarfile
from pathlib import Path

import pytest
import torchvision
from PIL import Image

from clipadapter.data import textiles
from clipadapter.demo import open_demo_data
from clipadapter.errors import DataError

SYNSETS = ("n01440764", "n02102040", "n02979186")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder of data sets."""
    monkeypatch.setenv("CLIPADAPTER_DATA", str(tmp_path / "sets"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sets"


def write_pictures(folder, counts):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (9, 8), (i, 0, 0)).save(folder / name / f"{i}.JPEG")


def open_quietly(source):
    notes = []
    return open_demo_data(source, notes.append), notes


def test_the_pictures_of_fabric_are_described_as_what_they_are():
    data, notes = open_quietly(None)
    assert notes == []
    assert (data.metric, data.largest_class) == ("balanced_accuracy", "flawless fabric")
    assert data.constant_answer.metrics == {"accuracy": 0.5, "balanced_accuracy": pytest.approx(1 / 3)}
    text = data.describe((1, 16), 3)
    assert text.startswith("Inspection of fabric: is a piece flawless, has it a local defect")
    assert "1,300 pictures of 3 classes: fabric with a global defect (325), fabric with a local defect (325), " in text
    assert "Of 1,000 test pictures, 300 were drawn. Models learn from 1 to 16 of each class, drawn 3 times, " in text
    assert text.endswith(
        "Chance is 33.3 %. The largest class, 'flawless fabric', has 50.0 % of the test pictures: always answering it "
        "has 50.0 % accuracy and 33.3 % balanced accuracy. So balanced accuracy is shown: the mean, over classes, of "
        "the share of a class that is recognised."
    )
    assert not {*data.train.paths} & {*data.test.paths}
    assert {*data.train.paths, *data.test.paths} < {*textiles().paths}


def test_equal_classes_are_measured_by_accuracy(tmp_path):
    write_pictures(tmp_path / "pets", {"cat": 4, "dog": 4})
    data, _ = open_quietly(tmp_path / "pets")
    assert (data.name, data.metric, data.constant_answer.name) == ("pets", "accuracy", "always the same class")
    assert data.describe((2,), 1).splitlines() == [
        "8 pictures of 2 classes: cat (4), dog (4).",
        "Every other picture of a class is for tests; examples come from the rest. Models learn from 2 of each class, "
        "drawn once, and are measured on 4 test pictures.",
        "Chance is 50.0 %: all classes have the same number of test pictures.",
    ]


def test_a_class_without_test_pictures_makes_classes_unequal_and_all_without_are_refused(tmp_path):
    write_pictures(tmp_path / "pets" / "train", {"cat": 2, "dog": 2, "newt": 2})
    write_pictures(tmp_path / "pets" / "test", {"cat": 3, "dog": 3})
    data, _ = open_quietly(tmp_path / "pets")
    assert data.metric == "balanced_accuracy"
    assert "Chance is 33.3 %. One of the largest classes, 'cat', has 50.0 % of the test" in data.describe((1,), 1)
    write_pictures(tmp_path / "few", {"cat": 1, "dog": 1})
    with pytest.raises(DataError, match="'few' has no test pictures: each class needs at least two pictures"):
        open_quietly(tmp_path / "few")


def test_many_test_pictures_are_thinned_class_by_class(tmp_path, monkeypatch):
    monkeypatch.setattr("clipadapter.demo.MAX_TEST_PICTURES", 10)
    for part in ("train", "test"):
        write_pictures(tmp_path / "pets" / part, {"cat": 30, "dog": 9, "newt": 1})
    data, _ = open_quietly(tmp_path / "pets")
    assert data.test_counts == {"cat": 8, "dog": 2, "newt": 1}
    assert len(data.train.samples) == 40
    assert "Examples come from its training pictures. Of 40 test pictures, 11 were drawn." in data.describe((1,), 1)
    assert set(data.test.paths) < set(open_quietly(tmp_path / "pets" / "test")[0].train.root.rglob("*.JPEG"))


def test_imagenette_is_downloaded_unpacked_and_read(root, tmp_path, monkeypatch):
    for split, count in (("train", 3), ("val", 2)):
        write_pictures(tmp_path / "tree" / "imagenette2-160" / split, dict.fromkeys(SYNSETS, count))
    fetched = []

    def download(url, download_root, md5=None):
        """Torchvision's, without the network: it gets an archive with the layout of the real one."""
        fetched.append(url)
        archive = Path(download_root) / url.rpartition("/")[2]
        with tarfile.open(archive, "w:gz") as file:
            file.add(tmp_path / "tree" / "imagenette2-160", "imagenette2-160")
        torchvision.datasets.utils.extract_archive(str(archive), str(download_root))

    monkeypatch.setattr("torchvision.datasets.imagenette.download_and_extract_archive", download)
    data, notes = open_quietly(Path("imagenette"))
    assert [url.rpartition("/")[2] for url in fetched] == ["imagenette2-160.tgz"]
    (note,) = notes
    assert note.startswith(f"downloading Imagenette to {root / 'imagenette2-160'}: imagenette2-160.tgz of ")
    assert data.train.class_names == ("tench", "English Springer Spaniel", "cassette player")
    assert (len(data.train.samples), len(data.test.samples), data.templates) == (9, 6, "imagenet")
    assert data.describe((1,), 1).startswith("Everyday things, ten classes of ImageNet in small pictures")
    again, notes = open_quietly(Path("imagenette"))
    assert again.test == data.test
    assert (notes, len(fetched)) == ([], 1)


def test_a_failed_download_says_what_was_tried_and_that_the_demo_works_offline(root, monkeypatch):
    def download(url, download_root, md5=None):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.imagenette.download_and_extract_archive", download)
    with pytest.raises(DataError, match="download of 'imagenette' failed .*Name or service not known") as failure:
        open_quietly(Path("imagenette"))
    words = str(failure.value)
    assert "Tried: imagenette2-160.tgz of https://github.com/fastai/imagenette (94 MB), unpacked. " in words
    assert "'clipadapter demo' without --data needs no network" in words


def test_class_folders_are_read_without_the_split_file_of_the_papers(root):
    write_pictures(root / "eurosat" / "2750", {"River": 4, "Forest": 4})
    data, (note,) = open_quietly(Path("eurosat"))
    assert data.name == "EuroSAT" and data.train.class_names == ("Forest", "River")
    assert len(data.train.samples) == len(data.test.samples) == 4
    assert "split_zhou_EuroSAT.json, is missing" in note and "can't be compared with the papers'" in note


def test_sets_that_need_files_by_hand_and_typos_are_refused_but_a_folder_wins_over_a_name(root, tmp_path):
    words = "'oxford_pets' needs a file that can't be downloaded.*split_zhou_OxfordPets"
    with pytest.raises(DataError, match=words) as failure:
        open_quietly(Path("oxford_pets"))
    assert "imagenette needs none. 'clipadapter demo'" in str(failure.value)
    assert not root.exists()
    write_pictures(tmp_path / "imagenette", {"cat": 2, "dog": 2})
    assert open_quietly(Path("imagenette"))[0].train.class_names == ("cat", "dog")
    shutil.rmtree(tmp_path / "imagenette")
    with pytest.raises(DataError, match="Did you mean the data set 'imagenette'?"):
        open_quietly(Path("imagenete"))
