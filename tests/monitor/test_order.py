"""The order in which pictures came."""

import os

import pytest
from PIL import Image

from clipadapter.errors import InputError
from clipadapter.monitor import in_order


@pytest.fixture
def photos(tmp_path):
    """Three pictures, written one an hour; the first says that it was taken long before, the last long after."""
    for i, (name, taken) in enumerate(
        (("b.jpg", "2001:02:03 04:05:06"), ("c.png", None), ("a.jpg", "2031:01:01 00:00:00"))
    ):
        image, exif = Image.new("RGB", (8, 8)), Image.Exif()
        if taken:
            exif.get_ifd(0x8769)[0x9003] = taken
        image.save(tmp_path / name, exif=exif)
        os.utime(tmp_path / name, (1.5e9 + 3600 * i,) * 2)
    return tmp_path


def test_a_photo_came_when_it_was_taken_another_when_it_was_written(photos):
    paths, times = in_order(sorted(photos.iterdir()))
    assert [path.name for path in paths] == ["b.jpg", "c.png", "a.jpg"]
    assert times[1] == 1.5e9 + 3600
    assert times == sorted(times)


def test_by_name_nothing_is_known_of_times(photos):
    paths, times = in_order(sorted(photos.iterdir(), reverse=True), "name")
    assert ([path.name for path in paths], times) == (["a.jpg", "b.jpg", "c.png"], None)


def test_damaged_and_missing_files_do_not_stop_it(photos):
    (photos / "d.jpg").write_bytes(b"\xff\xd8\xff nothing")
    paths, _ = in_order([*photos.iterdir(), photos / "gone.jpg"])
    assert paths[0].name == "gone.jpg" and "d.jpg" in {path.name for path in paths}


def test_files_of_one_time_are_in_the_order_of_their_names(tmp_path):
    for name in ("2.png", "1.png", "3.png"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1.0, 1.0))
    assert [path.name for path in in_order(list(tmp_path.iterdir()))[0]] == ["1.png", "2.png", "3.png"]


def test_there_are_two_orders():
    with pytest.raises(InputError, match="by time or name, not by 'size'"):
        in_order([], "size")
