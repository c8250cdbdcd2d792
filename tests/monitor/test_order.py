"""The order in which pictures were taken."""

import os

import pytest
from PIL import Image

from clipadapter.errors import InputError
from clipadapter.monitor import sort_pictures


@pytest.fixture
def photos(tmp_path):
    """Three pictures, written one hour apart; by its EXIF date the first was taken long before, the last long after."""
    for i, (name, exif_date) in enumerate(
        (("b.jpg", "2001:02:03 04:05:06"), ("c.png", None), ("a.jpg", "2031:01:01 00:00:00"))
    ):
        image, exif = Image.new("RGB", (8, 8)), Image.Exif()
        if exif_date:
            exif.get_ifd(0x8769)[0x9003] = exif_date
        image.save(tmp_path / name, exif=exif)
        os.utime(tmp_path / name, (1.5e9 + 3600 * i,) * 2)
    return tmp_path


def test_photos_have_their_exif_date_and_other_files_the_date_of_writing(photos):
    paths, times = sort_pictures(sorted(photos.iterdir()))
    assert [path.name for path in paths] == ["b.jpg", "c.png", "a.jpg"]
    assert times[1] == 1.5e9 + 3600
    assert times == sorted(times)
    (photos / "d.jpg").write_bytes(b"\xff\xd8\xff nothing")
    paths, _ = sort_pictures([*photos.iterdir(), photos / "gone.jpg"])
    assert paths[0].name == "gone.jpg" and "d.jpg" in {path.name for path in paths}


def test_the_order_by_name_has_no_times(photos):
    paths, times = sort_pictures(sorted(photos.iterdir(), reverse=True), "name")
    assert ([path.name for path in paths], times) == (["a.jpg", "b.jpg", "c.png"], None)
    with pytest.raises(InputError, match="by time or name, not by 'size'"):
        sort_pictures([], "size")


def test_files_of_one_time_are_in_the_order_of_their_names(tmp_path):
    for name in ("2.png", "1.png", "3.png"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1.0, 1.0))
    assert [path.name for path in sort_pictures(list(tmp_path.iterdir()))[0]] == ["1.png", "2.png", "3.png"]
