import pytest

from clipadapter.data.sets.described import parse_description
from clipadapter.errors import DataError, UnknownNameError

BIRDS = {
    "layout": '"split-file"',
    "title": '"Birds"',
    "summary": '"Birds: 2 classes."',
    "folder": '"birds"',
    "n_classes": "2",
    "counts": "{ train = 2, test = 2 }",
    "templates": '"default"',
    "paper": '"https://example.org/paper"',
    "homepage": '"https://example.org"',
    "licence": '"CC0"',
    "image_folder": '"images"',
    "split_file": '"split.json"',
    "instructions_section": '"birds"',
    "sources": '{ images = "birds.zip of {homepage}" }',
}


def write_toml(**changes):
    """The description of a data set, with some fields changed; None removes a field."""
    fields = {**BIRDS, **changes}
    return "\n".join(f"{field} = {value}" for field, value in fields.items() if value is not None)


def test_a_description_becomes_a_class(tmp_path):
    cls = parse_description("birds", write_toml(download='{ dataset = "CUB", folder = "images" }'))
    assert (cls.title, cls.n_classes, cls.counts, cls.__doc__) == (
        "Birds",
        2,
        {"train": 2, "test": 2},
        "Birds: 2 classes.",
    )
    images, split_file = cls().required_paths(tmp_path)
    assert (images.path, images.source, images.downloadable) == (
        tmp_path / "birds/images",
        "birds.zip of https://example.org",
        True,
    )
    assert split_file.path == tmp_path / "birds/split.json" and not split_file.downloadable


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_classes": "2.0"}, "data set 'birds': n_classes must be of type int, got 2.0"),
        ({"title": "7"}, "data set 'birds': title must be of type str, got 7"),
        ({"title": None, "counts": None}, "data set 'birds': these fields are missing: counts, title"),
        ({"summary": None}, "these fields are missing: summary"),
        ({"n_classes": "["}, "data set 'birds' is not TOML"),
        ({"download": '{ class = "CUB" }'}, "download has the fields dataset, folder, has_checksum and arguments"),
    ],
)
def test_a_damaged_description_says_which_field_is_wrong(changes, message):
    with pytest.raises(DataError, match=message):
        parse_description("birds", write_toml(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"homepag": '"x"'}, "no field of data set 'birds' is called 'homepag'. Did you mean 'homepage'?"),
        ({"layout": '"folders"'}, "no layout of data set 'birds' is called 'folders'"),
        ({"layout": None}, "no layout of data set 'birds' is called 'None'"),
    ],
)
def test_an_unknown_field_or_layout_says_what_exists(changes, message):
    with pytest.raises(UnknownNameError, match=message):
        parse_description("birds", write_toml(**changes))
