import pytest

from clipadapter.data.sets.layouts import parse_description
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


def test_a_description_becomes_a_data_set(tmp_path):
    birds = parse_description("birds", write_toml(download='{ dataset = "CUB", folder = "images" }'))
    assert (birds.name, birds.n_classes, birds.counts) == ("birds", 2, {"train": 2, "test": 2})
    images, split_file = birds.required_paths(tmp_path)
    assert (images.path, images.source, images.downloadable) == (
        tmp_path / "birds/images",
        "birds.zip of https://example.org",
        True,
    )
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
    ],
)
def test_a_damaged_description_says_which_field_is_wrong(changes, message):
    with pytest.raises(DataError, match=message):
        parse_description("birds", write_toml(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": '"folders"'}, "no layout of data set 'birds' is called 'folders'"),
        ({"layout": None}, "no layout of data set 'birds' is called 'None'"),
    ],
)
def test_an_unknown_layout_says_what_exists(changes, message):
    with pytest.raises(UnknownNameError, match=message):
        parse_description("birds", write_toml(**changes))
