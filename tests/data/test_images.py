import base64
import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageOps

from clipadapter.data import image_bytes, images, read_image, set_max_pixels
from clipadapter.data.decode_process import MemoryBudget, _cgroup_limits, memory_bytes, peak_bytes
from clipadapter.data.thumbnails import encode_thumbnails, thumbnail_url
from clipadapter.errors import ImageError, InputError

RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 180, 30)


def coded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def one_bit_png(width, height):
    """A valid PNG of one colour that is tiny on disk, whatever its size."""
    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def near(pixel, expected, tolerance=30):
    return max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) <= tolerance


def assert_is_the_picture(image):
    assert (image.mode, image.size) == ("RGB", (160, 120))
    for spot, colour in (((80, 15), RED), ((80, 105), BLUE), ((25, 25), GREEN)):
        assert near(image.getpixel(spot), colour), (spot, image.getpixel(spot))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jpg", "JPEG"),
        ("UPPER.JPG", "JPEG"),
        ("no_extension", "JPEG"),
        ("png_named.jpg", "PNG"),
        ("a.webp", "WEBP"),
        ("a.bmp", "BMP"),
        ("a.gif", "GIF"),
        ("a.ppm", "PPM"),
        ("a.jp2", "JPEG2000"),
        ("a.tiff", "TIFF"),
        ("café 写真 🍕 with spaces.png", "PNG"),
    ],
)
def test_the_format_depends_on_the_bytes_not_the_name(tmp_path, picture, name, kind):
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    (tmp_path / name).write_bytes(coded(picture, kind, **options))
    assert_is_the_picture(read_image(tmp_path / name))
    assert_is_the_picture(read_image(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("orientation", "stored_as"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
        (99, None),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_turns_the_picture_upright(picture, orientation, stored_as, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture if stored_as is None else picture.transpose(stored_as)
    data = coded(stored, kind, exif=exif)
    assert_is_the_picture(read_image("a", data=data))
    assert_is_the_picture(read_image(Image.open(io.BytesIO(data))))


def test_broken_exif_and_junk_after_the_end_do_not_cost_the_picture_and_cmyk_keeps_its_colours(picture):
    data = coded(picture, "JPEG", exif=b"Exif\0\0" + b"\xff" * 40)
    assert_is_the_picture(read_image("a.jpg", data=data))
    assert_is_the_picture(read_image("a.jpg", data=coded(picture, "JPEG") + b"junk" * 2000))
    data = coded(picture.convert("CMYK"), "JPEG")
    assert b"Adobe" in data and Image.open(io.BytesIO(data)).mode == "CMYK"
    assert_is_the_picture(read_image("a.jpg", data=data))
    assert_is_the_picture(read_image("a.tiff", data=coded(picture.convert("CMYK"), "TIFF")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind):
    ramp = np.linspace(0, 65535, 160).astype(np.uint16)
    image = read_image("a", data=coded(Image.fromarray(np.tile(ramp, (120, 1))), kind))
    got = np.asarray(image)[60, :, 0].astype(int)
    assert np.abs(got - ramp / 257).max() <= 1
    assert (got[0], got[-1]) == (0, 255)


@pytest.mark.parametrize(("white", "expected"), [(4095, 255), (4096, 16)])
def test_grey_of_12_bits_in_a_16_bit_file_is_not_dark(white, expected, monkeypatch):
    monkeypatch.setattr(images, "_BAND_PIXELS", 160 * 50)  # the brightest pixel is in the last of three bands
    values = np.zeros((120, 160), np.uint16)
    values[-1, -1], values[0, 0] = white, 2048
    image = read_image("a", data=coded(Image.fromarray(values), "PNG"))
    assert image.getpixel((159, 119)) == (expected,) * 3
    assert image.getpixel((0, 0)) == (128 if white == 4095 else 8,) * 3


@pytest.mark.parametrize(
    ("kind", "values", "expected", "large", "reason"),
    [
        (np.int32, [0, 257, 65535], [0, 1, 255], 70000, "more than 16 bits"),
        (np.float32, [0.0, 0.5, 1.0], [0, 128, 255], 200.0, r"outside 0\.\.1"),
    ],
)
def test_numbers_of_32_bits_are_scaled_within_their_range(kind, values, expected, large, reason):
    image = read_image(Image.fromarray(np.array([values], kind)))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == expected
    with pytest.raises(ImageError, match=reason):
        read_image(Image.fromarray(np.array([[0, large]], kind)))


def test_transparent_parts_become_white(picture):
    rgba = picture.convert("RGBA")
    rgba.paste((255, 0, 255, 0), (0, 0, 40, 120))
    rgba.putpixel((159, 0), (0, 0, 0, 128))
    image = read_image("a.png", data=coded(rgba, "PNG"))
    assert image.getpixel((5, 60)) == (255, 255, 255)
    assert near(image.getpixel((159, 0)), (127, 127, 127), 1)
    assert near(image.getpixel((80, 15)), RED, 0)


def test_palette_and_grey_with_transparency_keep_the_visible_colours(picture):
    palette = picture.quantize(8)
    hidden = palette.getpixel((25, 25))
    data = coded(palette, "PNG", transparency=hidden)
    assert Image.open(io.BytesIO(data)).mode == "P"
    image = read_image("a.png", data=data)
    assert image.getpixel((25, 25)) == (255, 255, 255)
    assert near(image.getpixel((80, 15)), RED) and near(image.getpixel((80, 105)), BLUE)
    grey = Image.merge("LA", [Image.linear_gradient("L"), Image.new("L", (256, 256), 255)])
    image = read_image("a.png", data=coded(grey, "PNG"))
    assert [image.getpixel((9, y)) for y in (0, 128, 255)] == [(0,) * 3, (128,) * 3, (255,) * 3]


def heic(image, **options):
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **options)
    return buffer.getvalue()


def test_heic_is_read_with_its_colours_and_its_orientation(picture):
    assert_is_the_picture(read_image("a.heic", data=heic(picture, quality=90)))
    stored = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert_is_the_picture(read_image("a.heic", data=heic(stored, quality=90, exif=exif.tobytes())))


def test_the_size_of_a_heic_is_checked_before_it_is_decoded_and_a_missing_extra_is_named(picture, monkeypatch):
    data = heic(picture)
    with pytest.raises(ImageError, match=r"too large: 0\.0192 million pixels"):
        read_image("a.heic", data=data, max_pixels=19_199)
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    monkeypatch.setattr("clipadapter.data.images.can_start_process", lambda: False)
    with pytest.raises(ImageError, match="HEIC needs the extra heic: pip install pi-heif"):
        read_image("a.heic", data=data)


def test_reading_other_formats_does_not_import_the_reader_of_heic(tmp_path, picture):
    picture.save(tmp_path / "a.png")
    code = "import sys; from clipadapter.data import read_image; read_image('a.png'); print('pi_heif' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True) == "False\n"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
def test_a_jpeg_without_its_end_marker_is_read_and_one_that_lacks_more_is_refused(options):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))
    data = coded(noise, "JPEG", **options)
    assert data.endswith(b"\xff\xd9")
    for cut in (1, 2):
        assert read_image("a.jpg", data=data[:-cut]).tobytes() == read_image("a.jpg", data=data).tobytes()
    for cut in (3, 4, 9, 200, 2000):
        with pytest.raises(ImageError, match="file is truncated"):
            read_image("a.jpg", data=data[:-cut])


def test_an_animation_counts_as_its_first_frame():
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue", "lime")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = coded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert near(read_image("a", data=data).getpixel((32, 32)), (255, 0, 0), 3)


def broken_png(picture):
    data = bytearray(coded(picture, "PNG"))
    at = data.index(b"IDAT") + 4
    data[at + 30] ^= 0xFF
    return bytes(data)


REASONS = {
    "empty": (lambda picture: b"", "file is empty"),
    "text": (lambda picture: b"this is a text\n" * 20, "not an image"),
    "html": (lambda picture: b"<!DOCTYPE html><html></html>", "not an image"),
    "cut jpeg": (lambda picture: coded(picture, "JPEG")[:700], "file is truncated"),
    "cut png": (lambda picture: coded(picture, "PNG")[:-60], "file is truncated"),
    "cut bmp": (lambda picture: coded(picture, "BMP")[:-60], "file is truncated"),
    "jpeg of three bytes": (lambda picture: b"\xff\xd8\xff", "file is (damaged|truncated)"),
    "cut webp": (lambda picture: coded(picture, "WEBP")[:-60], "file is (damaged|truncated)"),
    "cut gif": (lambda picture: coded(picture, "GIF")[:-60], "file is (damaged|truncated)"),
    "broken png": (broken_png, "file is damaged"),
    "svg": (lambda picture: b'<?xml version="1.0"?>\n<!-- by hand -->\n<svg></svg>', r"unsupported type \(SVG\)"),
    "bare svg": (lambda picture: b"  <svg/>", r"unsupported type \(SVG\)"),
    "cut heic": (lambda picture: heic(picture)[:-60], "file is (damaged|truncated)"),
    "mp4": (lambda picture: b"\0\0\0\x18ftypisom" + b"junk" * 9, r"unsupported type \(video\)"),
    "pdf": (lambda picture: b"%PDF-1.7\n", r"unsupported type \(PDF\)"),
    "strip": (lambda picture: coded(Image.new("RGB", (1, 5000)), "PNG"), "extreme shape: 1x5000"),
    "bomb": (
        lambda picture: one_bit_png(30000, 30000),
        r"too large: 900 million pixels \(limit 100; --max-pixels or set_max_pixels raises it\)",
    ),
    "small bomb": (lambda picture: one_bit_png(12000, 12000), "too large: 144 million pixels"),
}


@pytest.mark.parametrize("case", REASONS)
def test_unreadable_files_are_refused_with_the_reason(tmp_path, picture, case):
    make, reason = REASONS[case]
    (tmp_path / "bad.jpg").write_bytes(make(picture))
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(tmp_path / "bad.jpg")
    assert caught.value.source == str(tmp_path / "bad.jpg")


def test_the_limit_is_an_argument_and_pillows_own_guard_neither_warns_nor_changes():
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        big = read_image("a.png", max_pixels=10**8, data=one_bit_png(9600, 9600))
        with pytest.raises(ImageError, match="0.0192 million pixels"):
            read_image(Image.new("RGB", (160, 120)), max_pixels=19_199)
    assert big.size == (9600, 9600) and big.width * big.height > before
    assert caught == [] and before == Image.MAX_IMAGE_PIXELS


def test_the_limit_can_be_set_for_all_calls():
    picture = Image.new("RGB", (160, 120))
    try:
        set_max_pixels(19_199)
        with pytest.raises(ImageError, match="set_max_pixels raises it"):
            read_image(picture)
        assert read_image(picture, max_pixels=19_200).size == (160, 120)
    finally:
        set_max_pixels()
    assert read_image(picture).size == (160, 120)
    with pytest.raises(InputError, match="max_pixels must be 1 or more"):
        set_max_pixels(0)


def test_a_large_jpeg_is_shrunk_so_that_its_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(images, "MAX_DECODED_JPEG_PIXELS", 640 * 480)
    for size, expected in (((640, 480), (640, 480)), ((642, 480), (321, 240)), ((1281, 961), (321, 241))):
        assert read_image("a.jpg", data=large_jpeg(*size)).size == expected
    assert read_image("a.jpg", data=large_jpeg(1280, 960), shrink_to=1).size == (160, 120)
    assert read_image("a.png", data=coded(Image.new("RGB", (700, 480)), "PNG")).size == (700, 480)


def test_ratio_of_100_is_still_read():
    assert read_image(Image.new("RGB", (100, 1))).size == (100, 1)
    assert read_image(Image.new("RGB", (1, 1), (10, 200, 10))).getpixel((0, 0)) == (10, 200, 10)
    with pytest.raises(ImageError, match="extreme shape: 101x1"):
        read_image(Image.new("RGB", (101, 1)))


def test_paths_that_are_no_files_are_refused_and_bytes(tmp_path):
    with pytest.raises(InputError, match="can't be read from bytes"):
        read_image(b"abc")
    for path, reason in (("none.jpg", "no such file"), ("", "not a file"), ("a\0.jpg", "no such file")):
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / path)


def test_arrays_of_every_shape_are_read(picture):
    pixels = np.asarray(picture)
    alpha = np.dstack([pixels, np.full((120, 160), 255, np.uint8)])
    for array in (pixels, alpha, pixels / 255, pixels.astype(np.float32) / 255, pixels[:, ::-1][:, ::-1]):
        assert np.array_equal(np.asarray(read_image(array)), pixels)
    grey = pixels[..., 0]
    for array in (grey, grey[..., None]):
        assert np.array_equal(np.asarray(read_image(array)), np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"array \(3, 8, 8\) uint8: unsupported shape"),
        (np.zeros(8, np.uint8), "unsupported shape"),
        (np.zeros((0, 8), np.uint8), "has no pixels"),
        (np.zeros((8, 8), np.int64), "array .* int64: unsupported dtype"),
        (np.full((8, 8), 2.0), r"outside 0\.\.1"),
        (np.full((8, 8), np.nan), r"outside 0\.\.1"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(array, reason):
    with pytest.raises(ImageError, match=reason):
        read_image(array)


def test_the_picture_given_is_not_changed(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    source = Image.open(io.BytesIO(coded(picture, "JPEG", exif=exif)))
    read_image(source)
    assert source.size == (160, 120) and source.getexif()[0x0112] == 6
    assert read_image(picture) is not picture


def large_jpeg(width, height, **options):
    """Smooth waves, which an exact halving keeps but for rounding."""
    x, y = np.arange(width) / 40, np.arange(height)[:, None] / 50
    waves = np.dstack([127 + 100 * np.sin(x + y), 127 + 100 * np.cos(x - y), 127 + 100 * np.sin(x) * np.cos(y)])
    return coded(Image.fromarray(waves.astype(np.uint8)), "JPEG", quality=95, **options)


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((640, 480), 241, (640, 480)),
        ((640, 480), 240, (320, 240)),
        ((640, 480), 120, (160, 120)),
        ((640, 480), 1, (80, 60)),
        ((641, 480), 1, (641, 480)),  # else its proportions would change
        ((484, 644), 30, (121, 161)),
    ],
)
def test_a_jpeg_is_shrunk_to_the_requested_size(tmp_path, size, least, expected):
    (tmp_path / "a").write_bytes(large_jpeg(*size))
    assert read_image(tmp_path / "a", shrink_to=least).size == expected


def test_a_shrunk_jpeg_has_the_means_of_its_pixels_stands_upright_and_is_not_let_in_if_it_is_too_large():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = large_jpeg(640, 480, exif=exif)
    whole = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"), float)
    means = whole.reshape(320, 2, 240, 2, 3).mean(axis=(1, 3))
    gap = np.abs(np.asarray(read_image("a", data=data, shrink_to=240), float) - means)
    assert gap.max() <= 3
    assert gap.mean() < 1
    with pytest.raises(ImageError, match="too large"):
        read_image("a", data=data, max_pixels=640 * 480 - 1, shrink_to=1)


def test_all_pixels_are_kept_by_default_and_of_other_formats():
    data = large_jpeg(640, 480)
    opened = Image.open(io.BytesIO(data)).convert("RGB")
    for kept in (data, coded(opened, "PNG")):
        for least in (None, 481) if kept is data else (1,):
            np.testing.assert_array_equal(read_image("a.jpg", data=kept, shrink_to=least), np.asarray(opened))
    assert read_image(Image.open(io.BytesIO(data)), shrink_to=1).size == (640, 480)


def test_image_bytes_tell_pictures_apart(tmp_path, picture):
    (tmp_path / "a.png").write_bytes(coded(picture, "PNG"))
    assert image_bytes(tmp_path / "a.png") == (tmp_path / "a.png").read_bytes()
    assert image_bytes(picture) == image_bytes(np.asarray(picture))
    others = [picture.rotate(180), picture.convert("L"), picture.resize((120, 160)), picture.crop((0, 0, 160, 119))]
    assert len({image_bytes(image) for image in [picture, *others]}) == 5
    with pytest.raises(ImageError, match="no such file"):
        image_bytes(tmp_path / "b.png")


def test_a_file_that_is_too_big_is_not_read_into_memory(tmp_path):
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(ImageError, match=r"too large: 1024 MiB \(limit 1024\)"):
        image_bytes(tmp_path / "huge.jpg")


def test_threads_read_the_same(picture):
    files = [coded(picture, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")] * 8
    alone = [read_image("a", data=data).tobytes() for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: read_image("a", data=data).tobytes(), files))
    assert together == alone


def test_thumbnails_are_small_and_end_at_the_budget(tmp_path):
    for i in range(4):
        Image.effect_noise((300, 200), 50).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in (0, 9, 1, 2, 3)]  # there is no file 9
    thumbnails = encode_thumbnails(paths, side=88, quality=70)
    assert thumbnails[1] == "" and all(thumbnails[:1] + thumbnails[2:])
    image = Image.open(io.BytesIO(base64.b64decode(thumbnails[0])))
    assert (image.format, max(image.size)) == ("JPEG", 88)
    first_two = encode_thumbnails(paths, 88, 70, max_letters=len(thumbnails[0]) + len(thumbnails[2]))
    assert first_two == [thumbnails[0], "", thumbnails[2], "", ""]
    assert thumbnail_url("AAAA") == "data:image/jpeg;base64,AAAA"
    assert thumbnail_url("") == ""


def test_threads_never_hold_more_than_the_budget_together():
    budget, most, lock = MemoryBudget(10), 0, threading.Lock()

    def work(size):
        nonlocal most
        with budget.hold(size), lock:
            most = max(most, budget._held)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [3, 4, 5, 2, 10, 1] * 50))
    assert most <= 10 and budget._held == 0
    with pytest.raises(KeyError), budget.hold(10):  # room is given back when decoding fails
        raise KeyError
    assert budget._held == 0


def test_a_request_above_the_budget_runs_alone():
    budget, entered = MemoryBudget(10), threading.Event()

    def large():
        with budget.hold(25):
            entered.set()
            return budget._held

    with ThreadPoolExecutor(1) as pool:
        with budget.hold(1):
            answer = pool.submit(large)
            while not budget._waiting:
                pass
            assert not entered.is_set()
        assert answer.result(10) == 25
    assert budget._held == 0


def test_memory_is_granted_in_the_order_of_requests():
    budget, order = MemoryBudget(10), []

    def work(size):
        with budget.hold(size):
            order.append(size)

    with ThreadPoolExecutor(3) as pool, budget.hold(10):
        for i, size in enumerate((8, 1, 9), 1):
            pool.submit(work, size)
            while len(budget._waiting) < i:
                pass
    # 8 and 1 fit together and may end in either order; 9 is last.
    assert sorted(order[:2]) == [1, 8] and order[2] == 9


def test_the_peak_is_that_of_what_is_decoded_and_the_memory_of_a_container_is_found_by_its_group(tmp_path):
    assert peak_bytes("JPEG", 160, 10) == 120
    assert peak_bytes("JPEG", 160, 10, True) == 120 + 8 * 160  # coefficients are not shrunk
    assert peak_bytes("WebP", 10, 10) == 200
    (tmp_path / "cgroup").write_text("0::/system.slice/a.service\n")
    group = tmp_path / "root" / "system.slice" / "a.service" / "memory.max"
    assert group in _cgroup_limits(tmp_path / "cgroup", tmp_path / "root")
    assert _cgroup_limits(tmp_path / "none") == []
    assert memory_bytes() > 1 << 26
