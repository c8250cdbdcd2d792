import json
import shutil
import tarfile
import zipfile

import pytest
import torchvision

from clipadapter.data import get_templates, load_dataset, read_image, textiles
from clipadapter.data.sets import data_root, find_set, get_set, list_sets, prepare
from clipadapter.data.sets.layouts import missing_pictures, parse_description, read_split
from clipadapter.errors import DataError, UnknownNameError
from clipadapter.utils.imagenet import clip_names

from .stand_in import IMAGENET, IMAGENETTE, classes_of, make_stand_in

IMAGENETS = ("imagenet", "imagenet_a", "imagenet_r", "imagenet_sketch", "imagenet_v2", "imagenette")
WITH_TRAINING_PICTURES = ("imagenet", "imagenette")
ELEVEN = (
    *("caltech101", "dtd", "eurosat", "fgvc_aircraft", "food101", "imagenet"),
    *("oxford_flowers", "oxford_pets", "stanford_cars", "sun397", "ucf101"),
)

# What the archives hold: name of the archive, path in it, path in the folder of the set.
ARCHIVES = {
    "caltech101": [("101_ObjectCategories.tar.gz", "101_ObjectCategories", "101_ObjectCategories")],
    "dtd": [("dtd-r1.0.1.tar.gz", "dtd/images", "images")],
    "eurosat": [("EuroSAT.zip", "2750", "2750")],
    "fgvc_aircraft": [("fgvc-aircraft-2013b.tar.gz", "fgvc-aircraft-2013b/data", ".")],
    "food101": [("food-101.tar.gz", "food-101/images", "images")],
    "imagenette": [("imagenette2-160.tgz", "imagenette2-160", ".")],
    "oxford_flowers": [("102flowers.tgz", "jpg", "jpg")],
    "oxford_pets": [("images.tar.gz", "images", "images"), ("annotations.tar.gz", None, None)],
    "sun397": [("SUN397.tar.gz", "SUN397", "SUN397")],
}
# Further files in them, that torchvision's classes read.
TEXTS = {
    "101_ObjectCategories.tar.gz": ("101_ObjectCategories/BACKGROUND_Google/tmp", ""),
    "dtd-r1.0.1.tar.gz": ("dtd/labels/train1.txt", "kind_0/train_0.jpg\n"),
    "fgvc-aircraft-2013b.tar.gz": ("fgvc-aircraft-2013b/data/images_variant_trainval.txt", "0000000 kind 0\n"),
    "food-101.tar.gz": ("food-101/meta/train.json", '{"kind_0": ["kind_0/train_0"]}'),
    "annotations.tar.gz": ("annotations/trainval.txt", "Abyssinian_1 1 1 1\n"),
    "SUN397.tar.gz": ("SUN397/ClassName.txt", "/k/kind_0\n"),
}


def pack(archive, source, inner, work):
    """An archive as its authors made it, of the stand-in's pictures."""
    tree = work / f"tree of {archive.name}"
    if inner:
        shutil.copytree(source, tree / inner, ignore=shutil.ignore_patterns("*.json"))
    if archive.name in TEXTS:
        path, text = TEXTS[archive.name]
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(text)
    archive.parent.mkdir(parents=True, exist_ok=True)
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in tree.rglob("*"):
                file.write(path, path.relative_to(tree))
    else:
        with tarfile.open(archive, "w:gz") as file:
            for path in tree.iterdir():
                file.add(path, path.name)


@pytest.fixture
def torchvision_of(tmp_path, monkeypatch):
    """A function that lets torchvision's class of a set "download" archives of a stand-in; gives the folder it comes
    from and the list of the archives that were fetched. All but the download is torchvision's own code."""

    def patch(name):
        source = make_stand_in(name, tmp_path / "source") / get_set(name).folder
        module = getattr(torchvision.datasets, get_set(name).download.dataset).__module__
        fetched = []

        def download(url, download_root, filename=None, md5=None):
            root = type(tmp_path)(download_root)
            for archive, inner, own in ARCHIVES[name]:
                if archive in (url.rpartition("/")[2], "101_ObjectCategories.tar.gz"):
                    fetched.append(archive)
                    target = root / "caltech-101" / archive if name == "caltech101" else root / archive
                    pack(target, source / (own or "."), inner, tmp_path / "work")
                    if name == "caltech101":
                        (root / filename).touch()  # torchvision removes the outer archive
                    else:
                        torchvision.datasets.utils.extract_archive(str(target), str(root))

        monkeypatch.setattr(f"{module}.download_and_extract_archive", download)
        if name == "oxford_flowers":
            from scipy.io import savemat

            def url(address, root, md5):
                values = {"imagelabels.mat": {"labels": [1, 1]}, "setid.mat": {"trnid": [1, 2]}}
                savemat(f"{root}/{address.rpartition('/')[2]}", values[address.rpartition("/")[2]])

            monkeypatch.setattr(f"{module}.download_url", url)
            monkeypatch.setattr(f"{module}.check_integrity", lambda path, md5: True)
        return source, fetched

    return patch


@pytest.mark.parametrize("name", list_sets())
def test_a_stand_in_is_read_like_the_original(name, tmp_path):
    dataset = load_dataset(name, make_stand_in(name, tmp_path, classes=3, pictures=4))
    assert dataset.name == name
    assert dataset.root == tmp_path / get_set(name).folder
    names = [f"kind_{i}" for i in range(3)]
    if name in IMAGENETS:
        names = [text for _, _, text in classes_of(name)[:3]]
    if name == "fgvc_aircraft":
        names = [f"kind {i}" for i in range(3)]
    assert list(dataset.class_names) == names
    parts = ("test",) if name in IMAGENETS else ("train", "val", "test")
    parts = ("train", "test") if name in WITH_TRAINING_PICTURES else parts
    assert dataset.splits == parts
    for part in parts:
        assert sorted(dataset.split(part).labels) == sorted(names * (4 if part == "train" else 2))
    assert all(path.is_file() for path in dataset.paths)


@pytest.mark.parametrize("name", list_sets())
def test_a_set_has_a_complete_description(name, tmp_path):
    one = get_set(name)
    assert name == one.name
    assert get_templates(one.templates)
    assert all(text.startswith("https://") for text in (one.paper, one.homepage))
    assert one.licence
    assert set(one.counts) <= {"train", "val", "test"}
    assert get_set(name).summary.endswith(".")
    for required in one.required_paths(tmp_path):
        assert f"{required.path}: {required.source}" in one.describe_paths(tmp_path)
        assert required.path.is_relative_to(tmp_path / one.folder)
    first = one.required_paths(tmp_path)[0].path
    with pytest.raises(DataError, match=f"the data set '{name}' is not ready: there is no {first}"):
        load_dataset(name, tmp_path)


def test_the_sets_of_the_papers_are_there_and_the_stand_in_has_names_and_synsets_of_imagenet():
    assert set(ELEVEN) | set(IMAGENETS) <= set(list_sets())
    numbers = [100, 47, 10, 100, 101, 1000, 102, 37, 196, 397, 101]
    assert [get_set(name).n_classes for name in ELEVEN] == numbers
    assert find_set("dtd").n_classes == 47
    assert find_set("shots/") is None
    with pytest.raises(UnknownNameError, match="no data set is called 'dttd'. Did you mean 'dtd'?"):
        get_set("dttd")
    names = clip_names()
    for synset, number, name in (*IMAGENET, *IMAGENETTE):
        assert list(names.items())[number] == (synset, name)


def test_a_path_wins_over_a_name(tmp_path, put, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dtd/cat/1.jpg", "dtd/dog/1.jpg"):
        put(tmp_path / name)
    assert load_dataset("dtd", make_stand_in("dtd", tmp_path / "root")).class_names == ("cat", "dog")


def test_the_root_is_the_argument_else_the_variable_else_in_the_cache(tmp_path, monkeypatch):
    make_stand_in("dtd", tmp_path / "variable")
    monkeypatch.delenv("CLIPADAPTER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root() == tmp_path / "cache/clipadapter/data"
    monkeypatch.setenv("CLIPADAPTER_DATA", str(tmp_path / "variable"))
    assert load_dataset("dtd").root == tmp_path / "variable/dtd"
    assert data_root(tmp_path) == tmp_path
    with pytest.raises(DataError, match="not ready"):
        load_dataset("dtd", tmp_path / "other")


def test_a_typo_says_which_set_was_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no folder or file 'oxford_pet'. Did you mean the data set 'oxford_pets'?"):
        load_dataset("oxford_pet")
    (tmp_path / "oxford_petz").mkdir()
    with pytest.raises(DataError, match="Did you mean 'oxford_petz'?"):
        load_dataset("oxford_petzz")


def test_missing_files_say_what_to_put_where(tmp_path):
    make_stand_in("dtd", tmp_path)
    (tmp_path / "dtd/split_zhou_DescribableTextures.json").unlink()
    words = r"there is no .*dtd/split_zhou_DescribableTextures\.json \(linked in .*DATASETS\.md#dtd\)$"
    with pytest.raises(DataError, match=words):
        load_dataset("dtd", tmp_path)
    shutil.rmtree(tmp_path / "dtd/images")
    (tmp_path / "dtd/images").mkdir()
    with pytest.raises(DataError, match=r"there is no .*dtd/images \(dtd-r1.0.1.tar.gz of .*prepare dtd'$"):
        load_dataset("dtd", tmp_path)


def test_a_half_unpacked_set_and_a_split_file_of_another_set_are_noticed(tmp_path):
    make_stand_in("eurosat", tmp_path, classes=2, pictures=2)
    shutil.rmtree(tmp_path / "eurosat/2750/kind_1")
    with pytest.raises(DataError, match="'eurosat' is incomplete: 4 of its 8 pictures are missing: .*kind_1"):
        load_dataset("eurosat", tmp_path)
    split = make_stand_in("dtd", tmp_path) / "dtd/split_zhou_DescribableTextures.json"
    rows = json.loads(split.read_text())
    rows["test"] = [[f"Abyssinian_{i}.jpg", 0, "kind_0"] for i in range(5)]
    split.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="5 of its 32 pictures are missing: .*Abyssinian_0.jpg"):
        prepare("dtd", tmp_path)


def test_differences_from_the_papers_are_listed(tmp_path):
    root = make_stand_in("dtd", tmp_path)
    assert get_set("dtd").differences(load_dataset("dtd", root)) == [
        "3 classes found, but the papers have 47",
        "18 pictures of train found, but the papers have 2820",
        "9 pictures of val found, but the papers have 1128",
        "9 pictures of test found, but the papers have 1692",
    ]
    aircraft = load_dataset("fgvc_aircraft", make_stand_in("fgvc_aircraft", tmp_path))
    assert get_set("fgvc_aircraft").differences(aircraft) == ["3 classes found, but the papers have 100"]


def test_damaged_lists_of_aircraft_say_where(tmp_path):
    folder = make_stand_in("fgvc_aircraft", tmp_path) / "fgvc_aircraft"
    for text, words in (
        (b"0000018 kind 0\n0000019 Concorde\n", r"_val\.txt, line 2: expected a picture and a variant.*Concorde"),
        (b"../0000019 kind 0\n", "line 1: expected a picture"),
        (b"caf\xe9 kind 0\n", "not UTF-8"),
    ):
        (folder / "images_variant_val.txt").write_bytes(text)
        with pytest.raises(DataError, match=words):
            load_dataset("fgvc_aircraft", tmp_path)


def test_invalid_folders_of_imagenet_raise_errors_with_advice(tmp_path, put):
    val = make_stand_in("imagenet", tmp_path) / "imagenet/images/val"
    shutil.move(val / IMAGENET[0][0], tmp_path / "away")
    with pytest.raises(DataError, match=f"train, test have different classes, such as {IMAGENET[0][0]}"):
        load_dataset("imagenet", tmp_path)
    (val / IMAGENET[0][0]).mkdir()
    with pytest.raises(DataError, match="has no pictures: was its archive unpacked to the end?"):
        load_dataset("imagenet", tmp_path)
    put(val / "cats/1.jpg")
    with pytest.raises(DataError, match="no class of ImageNet has a folder 'cats'; remove it"):
        load_dataset("imagenet", tmp_path)
    shutil.rmtree(val)
    put(val / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="has no class folders: sort its pictures into folders such as n01440764"):
        load_dataset("imagenet", tmp_path)


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
@pytest.mark.parametrize("name", ARCHIVES)
def test_files_that_torchvision_unpacks_are_moved_into_the_layout(name, tmp_path, torchvision_of):
    source, fetched = torchvision_of(name)
    done = prepare(name, tmp_path / "root")
    assert done.downloaded
    assert fetched == [archive for archive, _, _ in ARCHIVES[name]]
    missing = [] if name in ("fgvc_aircraft", "imagenette") else [".json"]
    assert [required.path.suffix for required in done.missing] == missing
    folder = tmp_path / "root" / source.name
    for split in source.glob("split_zhou_*.json"):
        shutil.copy(split, folder)
    again = prepare(name, tmp_path / "root")
    assert not again.downloaded
    assert again.differences[0].startswith("3 classes found")
    assert len(fetched) == len(ARCHIVES[name])
    wanted = load_dataset(name, tmp_path / "source")
    found = load_dataset(name, tmp_path / "root")
    assert [s.path.relative_to(folder) for s in found.samples] == [s.path.relative_to(source) for s in wanted.samples]
    assert not any(path.name.startswith(".") for path in folder.iterdir())


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
@pytest.mark.parametrize("name", ["dtd", "fgvc_aircraft"])
def test_an_incomplete_download_is_never_used(name, tmp_path, torchvision_of, monkeypatch):
    _, fetched = torchvision_of(name)
    module = getattr(torchvision.datasets, get_set(name).download.dataset).__module__
    works = __import__(module, fromlist=["_"]).download_and_extract_archive
    inner = {"dtd": "dtd/images", "fgvc_aircraft": "fgvc-aircraft-2013b/data/images"}[name]
    archives_seen = []

    def interrupted(url, download_root, md5=None):
        root = type(tmp_path)(download_root)
        (root / inner).mkdir(parents=True)
        (root / inner / "half.jpg").touch()
        (root / "whole.tar.gz").touch()
        raise OSError("the line is dead")

    def resumed(url, download_root, md5=None):
        root = type(tmp_path)(download_root)
        archives_seen.extend(path.name for path in root.glob("*.gz"))
        assert not list(root.rglob("half.jpg"))
        works(url, download_root, md5=md5)

    monkeypatch.setattr(f"{module}.download_and_extract_archive", interrupted)
    words = f"download of '{name}' failed .the line is dead.: run .* again, or add .* by hand as '.* info .*' says"
    with pytest.raises(DataError, match=words):
        prepare(name, tmp_path / "root")
    with pytest.raises(DataError, match="not ready: there is no .*images"):
        load_dataset(name, tmp_path / "root")
    monkeypatch.setattr(f"{module}.download_and_extract_archive", resumed)
    assert prepare(name, tmp_path / "root").downloaded
    assert len(fetched) == 1
    # torchvision knows no checksum of the archive of the aircraft, so an archive from before may be half.
    assert archives_seen == (["whole.tar.gz"] if name == "dtd" else [])


def test_sets_without_a_download_are_listed_as_missing(tmp_path):
    for name in ("stanford_cars", "ucf101", "imagenet"):
        done = prepare(name, tmp_path)
        assert not done.downloaded
        assert done.missing == get_set(name).required_paths(tmp_path)
    assert "no longer on the authors' site" in get_set("stanford_cars").describe_paths(tmp_path)
    assert not list(tmp_path.iterdir())


TEXTS_OF_BIRDS = {
    **{"layout": "split-file", "title": "Birds", "summary": "Birds: 2 classes.", "folder": "birds", "licence": "CC0"},
    **{"templates": "default", "paper": "https://example.org/paper", "homepage": "https://example.org"},
    **{"image_folder": "images", "split_file": "split.json", "instructions_section": "birds"},
}
BIRDS = {name: f'"{text}"' for name, text in TEXTS_OF_BIRDS.items()} | {
    **{"n_classes": "2", "counts": "{ train = 2, test = 2 }", "sources": '{ images = "birds.zip of {homepage}" }'}
}


def write_toml(**changes):
    """The description of a data set, with some fields changed; None removes a field."""
    fields = {**BIRDS, **changes}
    return "\n".join(f"{field} = {value}" for field, value in fields.items() if value is not None)


def test_a_description_becomes_a_data_set(tmp_path):
    birds = parse_description("birds", write_toml(download='{ dataset = "CUB", folder = "images" }'))
    assert (birds.name, birds.n_classes, birds.counts) == ("birds", 2, {"train": 2, "test": 2})
    images, split_file = birds.required_paths(tmp_path)
    assert images.path == tmp_path / "birds/images" and images.downloadable
    assert images.source == "birds.zip of https://example.org"
    assert split_file.path == tmp_path / "birds/split.json" and not split_file.downloadable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_classes": "2.0"}, "data set 'birds': n_classes: input should be a valid integer"),
        ({"title": "7"}, "data set 'birds': title: input should be a valid string"),
        ({"title": None, "counts": None}, "data set 'birds': title: field required; counts: field required"),
        ({"summary": None}, "summary: field required"),
        ({"n_classes": "["}, "data set 'birds' is not TOML"),
        ({"download": '{ class = "CUB" }'}, "download.dataset: field required; .*; download.class: extra inputs"),
        ({"homepag": '"x"'}, "data set 'birds': homepag: extra inputs are not permitted"),
        ({"layout": '"folders"'}, "no layout of data set 'birds' is called 'folders'"),
        ({"layout": None}, "no layout of data set 'birds' is called 'None'"),
    ],
)
def test_a_damaged_description_says_which_field_is_wrong(changes, message):
    with pytest.raises(UnknownNameError if "layout" in changes else DataError, match=message):
        parse_description("birds", write_toml(**changes))


SPLIT = {
    "train": [["b/2.jpg", 1, "ant"], ["a/1.jpg", 0, "zebra"], ["a/0.jpg", 0, "zebra"]],
    "val": [["b/3.jpg", 1, "ant"]],
    "test": [["a/4.jpg", 0, "zebra"], ["c d/5.jpg", 2, "Big cat"]],
}


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_rows_keep_their_order_and_classes_the_order_of_their_labels(tmp_path):
    samples, names = read_split(written(tmp_path / "split.json", SPLIT), tmp_path / "images")
    assert names == ("zebra", "ant", "Big cat")
    assert [(s.path.relative_to(tmp_path / "images").as_posix(), s.label, s.split) for s in samples] == [
        ("b/2.jpg", "ant", "train"),
        ("a/1.jpg", "zebra", "train"),
        ("a/0.jpg", "zebra", "train"),
        ("b/3.jpg", "ant", "val"),
        ("a/4.jpg", "zebra", "test"),
        ("c d/5.jpg", "Big cat", "test"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"train": [["a/1.jpg", 0, "a"],', r"line 1, character \d+: not JSON .*; download the file again"),
        (b"caf\xe9", r"not UTF-8 \(byte 3\)"),
        (b"[" * 100_000, "nested more than 100 deep"),
        ([], r"the content: Input should be a valid dictionary .*, got \[\]; a split file has lists"),
        ({"train": SPLIT["train"], "test": SPLIT["test"], "dev": []}, "dev: Extra inputs are not permitted"),
        ({"train": [["a.jpg", 0, "a"]]}, "test: Field required"),
        ({"train": SPLIT["train"], "test": []}, "test: List should have at least 1 item"),
        ({"train": {"a": 1}, "test": []}, "train: Input should be a valid list"),
        ({"train": [["a.jpg", 0]], "test": []}, r"train\.0\.2: Field required, got \['a.jpg', 0\]"),
        *(
            ({"train": [[name, 0, "a"]], "test": []}, r"train\.0\.0: .* the path must be inside the folder")
            for name in ("/etc/a.jpg", "a/../../b.jpg", "..\\b.jpg", "C:\\b.jpg", "b.jpg\0")
        ),
        ({"train": [[7, 0, "a"]], "test": []}, r"train\.0\.0: Input should be a valid string, got 7"),
        ({"train": [["a.jpg", True, "a"]], "test": []}, r"train\.0\.1: Input should be a valid integer, got True"),
        ({"train": [["a.jpg", -1, "a"]], "test": []}, r"train\.0\.1: Input should be greater .* to 0, got -1"),
        ({"train": [["a.jpg", 0, " "]], "test": []}, r"train\.0\.2: String should match .*, got ' '"),
        (
            {"train": [["a.jpg", 0, "a"]], "test": [["b.jpg", 0, "b"]]},
            "row 0 of test gives label 0 the name 'b', but an earlier row 'a'",
        ),
        ({"train": [["a.jpg", 0, "a"]], "test": [["b.jpg", 1, "a"]]}, "two labels have the same class name: a"),
    ],
)
def test_a_damaged_split_file_says_where(tmp_path, content, message):
    with pytest.raises(DataError, match=r"split\.json.*" + message):
        read_split(written(tmp_path / "split.json", content), tmp_path)


def test_a_missing_or_too_large_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.json can't be opened: No such file"):
        read_split(tmp_path / "none.json", tmp_path)
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(DataError, match="has 300 MiB, but at most 256 MiB are read"):
        read_split(tmp_path / "large.json", tmp_path)


def test_a_link_that_leads_out_is_no_picture(tmp_path, put):
    root = tmp_path / "pictures"
    there, outside = put(root / "a/1.jpg"), put(tmp_path / "secret/2.jpg")
    (root / "out.jpg").symlink_to(outside)
    (root / "in.jpg").symlink_to(there)
    (root / "out").symlink_to(outside.parent)
    paths = [there, root / "in.jpg", root / "out.jpg", root / "out/2.jpg", root / "a", root / "none/3.jpg"]
    assert missing_pictures(paths, root) == paths[2:]
    (tmp_path / "images").symlink_to(root)  # the folder of the pictures may be a link itself
    assert missing_pictures([tmp_path / "images/a/1.jpg"], tmp_path / "images") == []


def test_the_textiles_have_readable_class_names():
    pytest.importorskip("conformal_clip_data")
    dataset = textiles()
    assert (dataset.name, dataset.splits) == ("textiles", ("all",))
    counts = {name: dataset.labels.count(name) for name in dataset.class_names}
    assert counts == {"fabric with a global defect": 500, "fabric with a local defect": 500, "flawless fabric": 1000}
    assert read_image(dataset.paths[0]).size == (250, 250)
