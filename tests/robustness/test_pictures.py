"""Costly and broken pictures, made from a seed: each is read or refused within a bound of counted work."""

import io
import os
import random
import struct
import sys
import warnings
from contextlib import suppress

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from clipadapter.data import decode_cost, images, read_image
from clipadapter.data.images import is_slow_file, stop_decoding
from clipadapter.errors import ImageError

from .picture_bombs import REFUSED, UNUSUAL, encode, png_chunk, png_with, scan_bomb, tiff

FACTOR = float(os.environ.get("CLIPADAPTER_ATTACKS", "1"))
MAX_LINES = 600_000
"""Lines of Python that may run for one small file. Ordinary ones need fewer than 3,000."""


def lines_of_python(action):
    """How many lines run, in whatever module: a measure of work that is the same on every machine."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except ImageError:
        pass
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("name", REFUSED)
def test_a_bomb_is_refused_before_its_pixels_are_decoded_and_the_reason_names_the_limit(name, monkeypatch):
    data, reason = REFUSED[name]
    if "PNG" not in name:  # Pillow reads the EXIF block of a PNG after the pixels
        monkeypatch.setattr(Image.Image, "load", None)
    with pytest.raises(ImageError, match=f"too costly to decode: .*{reason}.* .limit "):
        read_image("a", max_pixels=1_000_000, data=data)


@pytest.mark.parametrize("data", UNUSUAL.values(), ids=UNUSUAL)
def test_a_file_of_an_unusual_structure_is_decoded_by_another_process(data, monkeypatch):
    assert is_slow_file(data, 1_000_000)
    monkeypatch.setattr(images, "finish_image", None)
    monkeypatch.setattr(images, "open_image", None)
    with suppress(ImageError):
        assert read_image("a", max_pixels=1_000_000, data=data).size in ((8, 8), (1, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the memory")
def test_that_process_has_limits_of_time_and_of_memory():
    with pytest.raises(ImageError, match=r"more than 0\.05 seconds of processor time"):
        read_image("a", data=png_with(1_000_000 * png_chunk(b"abCd", b"")), max_seconds=0.05)
    with pytest.raises(ImageError, match="too large for the memory of this machine"):
        read_image("a", data=tiff([(20_000 + i, 1, 1 << 24, 8) for i in range(99)], bytes(1 << 24)))


@pytest.mark.parametrize("data", [data for data, _ in REFUSED.values()] + [*UNUSUAL.values()], ids=[*REFUSED, *UNUSUAL])
def test_a_bomb_costs_a_bounded_number_of_steps(data):
    assert lines_of_python(lambda: read_image("a", max_pixels=1_000_000, data=data)) < MAX_LINES


def test_the_limit_of_scans_grows_with_that_of_pixels():
    data = scan_bomb(256, 400)
    assert read_image("a", data=data).size == (256, 256)
    scanned_samples = decode_cost.read_jpeg(data).scanned_samples
    # The last scan visits each sample once, and comes 400 times beside those of an ordinary file.
    assert 400 * 256**2 < scanned_samples < 420 * 256**2
    with pytest.raises(ImageError, match=r"samples in all scans \(limit 20\)"):
        read_image("a", max_pixels=1_000_000, data=data)


def test_a_jpeg_without_end_marker_which_is_decoded_twice_may_have_a_third_of_the_scans():
    complete, cut = scan_bomb(256, 200), scan_bomb(256, 200)[:-2]
    assert read_image("a", data=complete, max_pixels=1_000_000).size == (256, 256)
    assert read_image("a", data=cut, max_pixels=3_000_000).size == (256, 256)
    with pytest.raises(ImageError, match="too costly to decode: .* samples in all scans"):
        read_image("a", data=cut, max_pixels=1_000_000)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_scans_of_ordinary_progressive_files_stay_below_the_limit(subsampling):
    image = Image.effect_noise((640, 480), 40).convert("RGB")
    data = encode(image, "JPEG", progressive=True, subsampling=subsampling)
    work = decode_cost.read_jpeg(data)
    assert work.is_multi_scan
    assert 6 < work.scanned_samples / (640 * 480) < 15 < decode_cost.MAX_SCANNED_SAMPLES_PER_PIXEL
    plain = decode_cost.read_jpeg(encode(image, "JPEG", subsampling=subsampling))
    assert not plain.is_multi_scan and plain.scanned_samples == {0: 3, 1: 2, 2: 1.5}[subsampling] * 640 * 480


@pytest.fixture(scope="module")
def ordinary():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encode(image, "JPEG", exif=exif),
        encode(image, "JPEG", progressive=True),
        encode(image, "PNG", exif=exif),
        encode(image.convert("RGBA"), "PNG"),
        encode(image.quantize(8), "GIF"),
        encode(image, "WEBP", exif=exif),
        encode(image, "TIFF", compression="tiff_lzw"),
        encode(image, "BMP"),
        encode(image, "PPM"),
    ]


def test_damaged_files_are_read_or_refused_in_bounded_steps(ordinary):
    generator = random.Random(0)
    for _ in range(int(120 * FACTOR)):
        data = bytearray(generator.choice(ordinary))
        for _ in range(generator.choice((1, 1, 4, 30))):
            value = generator.choice((0, 1, 0x7F, 0xFF, generator.randrange(256)))
            data[generator.randrange(min(len(data), 400))] = value
        if generator.random() < 0.2:
            del data[generator.randrange(len(data)) :]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF
            steps = lines_of_python(lambda data=bytes(data): read_image("a", max_pixels=100_000, data=data))
        assert steps < MAX_LINES, bytes(data).hex()


def test_slow_formats_are_ended_after_their_processor_time_and_damage_has_the_reasons_of_others():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8))
    data = encode(noise, "JPEG2000")
    with pytest.raises(ImageError, match=r"too costly to decode: more than 0\.01 seconds of processor time"):
        read_image("a", data=data, max_seconds=0.01)
    for _ in range(2):  # a process that was stopped is replaced
        assert np.array_equal(np.asarray(read_image("a", data=data)), np.asarray(noise))
        stop_decoding()
    with pytest.raises(ImageError, match="file is (damaged|truncated)"):
        read_image("a", data=data[:150])
    with pytest.raises(ImageError, match="too large: 0.16 million pixels"):
        read_image("a", data=data, max_pixels=159_999)


def test_a_heic_that_hides_its_size_is_refused_before_its_pixels_are_sent():
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (640, 480))).save(file)
    data = file.getvalue()
    hidden = data.replace(struct.pack(">II", 640, 480), struct.pack(">II", 64, 48))
    assert hidden != data
    with pytest.raises(ImageError, match="file is damaged"):
        read_image("a", data=hidden, max_pixels=64 * 48)


@pytest.mark.parametrize("kind", ["JPEG2000", "PPM", "BMP", "TIFF"])
def test_what_a_process_reads_is_what_pillow_reads(kind):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8))
    text = b"P3 40 30 255 " + " ".join(map(str, np.asarray(image).ravel())).encode()
    data = {
        "PPM": text,
        "BMP": _run_lengths(np.asarray(image)[..., 0]),
        "TIFF": encode(image, "TIFF", compression="tiff_jpeg"),
    }.get(kind) or encode(image, kind)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(np.asarray(read_image("a", data=data)), expected)


def _run_lengths(grey):
    height, width = grey.shape
    rows = [b"".join(bytes((1, value)) for value in row) + b"\0\0" for row in grey[::-1].tolist()]
    body = b"".join(rows) + b"\0\1"
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256))
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + palette + body
