"""What a user is told about pictures that were read: once per kind, from the bytes of the files."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from clipadapter.data import scan
from clipadapter.data.image_notes import FIRST_FRAME, NO_END_MARKER, ImageNotes, find_image_notes
from clipadapter.encoders import create_encoder
from clipadapter.errors import DataWarning
from clipadapter.features import FeatureStore, extract


def frames(kind, count, **options):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (40, 50, 3), np.uint8)) for _ in range(count)]
    buffer = io.BytesIO()
    many = {"save_all": True, "append_images": pictures[1:]} if kind != "JPEG" else {}
    pictures[0].save(buffer, kind, **many, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_files_with_several_pages_or_frames_have_a_note(kind):
    assert find_image_notes(frames(kind, 1)) == []
    assert find_image_notes(frames(kind, 3)) == [FIRST_FRAME]


def test_a_big_tiff_and_one_of_the_other_byte_order_have_pages_and_a_damaged_file_is_searched_without_an_error():
    assert find_image_notes(frames("TIFF", 2, big_tiff=True)) == [FIRST_FRAME]
    assert find_image_notes(frames("TIFF", 1, big_tiff=True)) == []
    assert find_image_notes(b"MM\0*\0\0\0\x08\0\0\0\0\0\x0a" + bytes(9)) == [FIRST_FRAME]
    for kind in ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "JPEG"):
        data = frames(kind, 2)
        for end in range(0, len(data), 37):
            find_image_notes(data[:end])


def test_the_search_for_a_second_frame_is_bounded():
    one_block_each = frames("GIF", 1)[:13] + b"!\xfe\x01x\0" * 100_000
    assert find_image_notes(one_block_each + frames("GIF", 2)[13:]) == []


def test_a_jpeg_without_its_end_marker_has_a_note_and_the_one_of_its_thumbnail_does_not_count():
    thumbnail = frames("JPEG", 1)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\0" + thumbnail
    data = frames("JPEG", 1, exif=exif)
    assert thumbnail in data and find_image_notes(data) == []
    assert find_image_notes(data[:-2]) == [NO_END_MARKER]
    assert find_image_notes(data + b"a trailer, as some cameras write it") == []


def test_there_is_one_sentence_per_kind_with_the_first_names():
    notes = ImageNotes()
    for i in range(7):
        notes.add(f"{i}.gif", [FIRST_FRAME])
    notes.add("0.gif", [FIRST_FRAME])
    notes.add("a.jpg", [NO_END_MARKER])
    assert [str(warning) for warning in notes.warnings()] == [
        f"{FIRST_FRAME}: 7 (0.gif, 1.gif, 2.gif, 3.gif, 4.gif and 2 more)",
        f"{NO_END_MARKER}: 1 (a.jpg)",
    ]


def test_extraction_warns_once_whether_features_are_computed_or_stored(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.gif").write_bytes(frames("GIF", 2 + i))
    (tmp_path / "3.gif").write_bytes(frames("GIF", 1))
    paths = sorted(tmp_path.glob("*.gif"))
    with FeatureStore(":memory:") as store:
        for computed in (4, 0):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert extract(create_encoder("toy"), paths, store=store).computed == computed
            (warning,) = caught
            assert warning.category is DataWarning
            assert warning.message.names == tuple(map(str, paths[:3])) and warning.message.note == FIRST_FRAME


def test_a_scan_names_them_in_its_warnings(tmp_path):
    for name, data in (("a/1.tif", frames("TIFF", 2)), ("b/1.jpg", frames("JPEG", 1)[:-2])):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(data)
    report = scan(tmp_path)
    assert report.readable == 2
    assert report.warnings == (f"{FIRST_FRAME}: 1 (a/1.tif)", f"{NO_END_MARKER}: 1 (b/1.jpg)")
