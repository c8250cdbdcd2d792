"""Pipes and devices are refused at once: reading them could wait for ever, or never end."""

import os
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from clipadapter.data import image_bytes, load_dataset, read_class_names, read_image, scan
from clipadapter.errors import DataError, ImageError
from clipadapter.utils.parsing import read_json

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")


@pytest.fixture(params=["pipe", "link to a pipe", "link to a device"])
def endless(request, tmp_path):
    """Makes something endless of a name."""

    def make(name):
        if request.param == "link to a device":
            (tmp_path / name).symlink_to("/dev/zero")
        elif request.param == "pipe":
            os.mkfifo(tmp_path / name)
        else:
            os.mkfifo(tmp_path / "pipe")
            (tmp_path / name).symlink_to(tmp_path / "pipe")
        return tmp_path / name

    return make


@pytest.mark.parametrize(
    ("read", "name"),
    [(load_dataset, f"m.{suffix}") for suffix in ("csv", "tsv", "jsonl", "parquet")]
    + [(read_class_names, "names.json"), (read_json, "names.json"), (image_bytes, "a.jpg"), (read_image, "a.jpg")],
)
def test_what_is_read_must_be_a_regular_file(endless, read, name):
    with pytest.raises(ImageError if name == "a.jpg" else DataError, match="not a (regular )?file"):
        read(endless(name))


def test_scan_reports_files_that_are_not_regular(endless, tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        Image.fromarray(np.full((4, 4, 3), len(label), np.uint8)).save(tmp_path / label / "1.png")
    path = endless("a.jpg")
    (tmp_path / "m.csv").write_text(f"path,label\ncat/1.png,cat\ndog/1.png,dog\n{path.name},dog\n")
    report = scan(tmp_path / "m.csv")
    assert report.readable == 2 and report.unreadable == (("a.jpg", "not a file"),)


def test_of_a_large_file_that_is_no_picture_only_the_beginning_is_read(tmp_path, monkeypatch):
    with (tmp_path / "a.jpg").open("w+b") as file:
        file.truncate(1 << 29)
        watched = MagicMock(wraps=file)
        watched.__enter__.return_value = watched
        monkeypatch.setattr("clipadapter.data.images.open_regular", lambda path: watched)
        with pytest.raises(ImageError, match="not an image"):
            image_bytes(tmp_path / "a.jpg")
    assert 0 < sum(call.args[0] for call in watched.read.call_args_list) <= 4096
