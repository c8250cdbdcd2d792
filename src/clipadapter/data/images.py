"""Reading of pictures as upright RGB pictures with correct colours, or an error with the reason.

The first bytes of a file determine its format, not its name. Only the formats of ``_FORMATS`` are read. The cost of
decoding is checked beforehand (`decode_cost`), threads share a memory budget, and slow formats are decoded in another
process (`decode_process`). What a user should know about a picture that was read, as that it is
the first frame of an animation, is found by `image_notes`.
Pillow's `Image.open` is not used: its guard against huge files is a process-wide setting with a warning, which can't be
silenced in one thread. All functions are thread-safe.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clipadapter.data.decode_cost import (
    MAX_FAST_SAMPLES,
    MAX_SCANNED_SAMPLES_PER_PIXEL,
    TooCostly,
    check_exif,
    is_slow,
    read_jpeg,
)
from clipadapter.data.decode_process import DECODER_PROCESSES, MemoryBudget, can_start_process, peak_bytes
from clipadapter.data.image_notes import END_OF_JPEG, lacks_end_marker
from clipadapter.errors import ImageError, InputError
from clipadapter.utils.files import MAX_PIXELS, encodable, open_regular

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

MAX_DECODED_JPEG_PIXELS = 100_000_000
"""Larger JPEG files are shrunk while they are decoded, so that they need no more memory than this size."""
MAX_SIDE_RATIO = 100  # largest ratio of the sides: resizing a longer strip by its shorter side would fill the memory

ImageSource: TypeAlias = "str | Path | Image.Image | NDArray[Any]"

_max_pixels = MAX_PIXELS
_BUDGET = MemoryBudget()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_BUDGET.reset)

MAX_DECODE_SECONDS = 120.0
"""Processor time for a file that a separate process decodes. 100 megapixels of lossless JPEG 2000 take 50 seconds."""
WHITE_12_BIT, WHITE_16_BIT = 4095, 65535
_BAND_PIXELS = 1 << 18  # pictures are converted in bands, so that intermediate modes need only the memory of a band
_MAX_FILE_BYTES = 1 << 30
_MAGIC_BYTES = 1024  # bytes at the beginning of a file that determine its format
_JPEG = b"\xff\xd8\xff"

_FILLER = bytes(range(254, 0, -1)) * 4
_FILLERS = _FILLER + b"".join(bytes((0xFF, 0xD0 + i)) + _FILLER for i in range(8))
"""Follows the data of a JPEG that has no end marker: more than a group of blocks usually takes, alone and after each
restart marker, which a decoder may wait for."""

# Format, pattern of the first bytes, and the class that reads it; None: known, but not supported.
# A file with the brand "mif1" may hold HEIC or AVIF: the compatible brands that follow tell which.
_FORMATS: tuple[tuple[str, bytes, str | None], ...] = (
    ("JPEG", _JPEG, "PIL.JpegImagePlugin.JpegImageFile"),
    ("PNG", rb"\x89PNG\r\n\x1a\n", "PIL.PngImagePlugin.PngImageFile"),
    ("WebP", rb"RIFF....WEBP", "PIL.WebPImagePlugin.WebPImageFile"),
    ("GIF", rb"GIF8[79]a", "PIL.GifImagePlugin.GifImageFile"),
    ("BMP", rb"BM.{8}", "PIL.BmpImagePlugin.BmpImageFile"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]", "PIL.TiffImagePlugin.TiffImageFile"),
    ("PPM", rb"P[1-6]\s", "PIL.PpmImagePlugin.PpmImageFile"),
    ("AVIF", rb"....ftyp(avi[fs]|m[is]f1(....){1,9}avi[fs])", "PIL.AvifImagePlugin.AvifImageFile"),
    ("JPEG 2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "PIL.Jpeg2KImagePlugin.Jpeg2KImageFile"),
    ("HEIC", rb"....ftyp(hei|hev|mif1|msf1)", "pi_heif.HeifImageFile"),
    ("video", rb"....ftyp", None),
    ("SVG", rb"(\xef\xbb\xbf)?\s*(<\?xml.{,900}?)?<(svg|!DOCTYPE svg)", None),
    ("PDF", rb"%PDF", None),
    ("PostScript", rb"%!PS", None),
)


FORMAT_NAMES = tuple(kind.lower().replace(" ", "") for kind, _, reader in _FORMATS if reader)
"""Formats that are read, as options name them: "jpeg", "png", ..., "jpeg2000"."""


def read_image(
    source: ImageSource,
    max_pixels: int | None = None,
    data: bytes | None = None,
    shrink_to: int | None = None,
    max_seconds: float = MAX_DECODE_SECONDS,
) -> Image.Image:
    """Read a picture as an upright picture in mode RGB.

    EXIF rotation is applied, transparent pixels become white, 16-bit grey is scaled (as 12-bit grey, if no pixel is
    above 4095), and of an animation or a document with several pages the first is read. A JPEG that lacks only its end
    marker is read. Threads share a memory budget of a quarter of the machine's memory: a call waits until enough is
    free.

    Args:
        source: path, PIL picture, or array of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), of uint8 or of
            floats in 0..1.
        max_pixels: larger pictures are refused before decoding; None: see `set_max_pixels`. All scans of a JPEG
            together may process at most 20 samples for each of these pixels. A JPEG above 100 million pixels is decoded
            at a half, a quarter or an eighth of its size.
        data: the bytes of the file if they were read already, see `image_bytes`.
        shrink_to: decode a JPEG at a half, a quarter or an eighth of its size, which is faster, if its shorter side
            then has at least this many pixels and both sides are divisible. None: decode at full size.
        max_seconds: processor time for a file of a slow format, which a separate process decodes; see `is_slow_file`.

    Raises:
        ImageError: if the picture can't be read; if decoding would cost far more time or memory than its pixels
            justify; or if one side is over 100 times the other, since resizing by the shorter side would fill the
            memory.
        InputError: if the source is neither a path, a PIL picture nor an array.

    >>> import numpy as np
    >>> read_image(np.array([[0.0, 1.0]])).getpixel((1, 0))
    (255, 255, 255)
    """
    from PIL import Image

    name = source_name(source)
    max_pixels = get_max_pixels() if max_pixels is None else max_pixels
    if isinstance(source, (str, Path)):
        data = image_bytes(source) if data is None else data
        kind = _kind(data)[0]
        if is_slow(kind, data) and can_start_process():
            return DECODER_PROCESSES.decode(data, name, max_pixels, max_seconds)
        image, is_multi_scan = open_image(data, name, max_pixels)
        pixels = image.width * image.height
        factor = 1 if shrink_to is None else shrink_factor(data, image.size, shrink_to)
        while kind == "JPEG" and factor < 8 and pixels > factor**2 * MAX_DECODED_JPEG_PIXELS:
            factor *= 2
        with _BUDGET.hold(peak_bytes(kind, pixels, pixels // factor**2, is_multi_scan)):
            if kind == "JPEG" and lacks_end_marker(data):
                return _read_jpeg_without_end(data, name, max_pixels, factor)
            return finish_image(_draft(image, factor), name)
    image = source if isinstance(source, Image.Image) else _from_array(source, name)
    _check_size(image.size, name, max_pixels)
    finished = finish_image(image, name)
    return finished.copy() if finished is source else finished


def read_image_shrunk(
    source: ImageSource,
    min_sides: Iterable[int | None],
    max_pixels: int | None = None,
    data: bytes | None = None,
    max_seconds: float = MAX_DECODE_SECONDS,
) -> dict[int | None, Image.Image]:
    """Read a picture for squares of several sizes, decoded once for each factor; see ``shrink_to`` of `read_image`."""
    if isinstance(source, (str, Path)) and data is None:
        data = image_bytes(source)
    different = list(dict.fromkeys(min_sides))
    is_jpeg = isinstance(source, (str, Path)) and data is not None and data.startswith(_JPEG)
    factors = dict.fromkeys(different, 1)
    if is_jpeg and data is not None and len(different) > 1:
        size = open_image(data, source_name(source), get_max_pixels() if max_pixels is None else max_pixels)[0].size
        factors = {each: 1 if each is None else shrink_factor(data, size, each) for each in different}
    images: dict[int, Image.Image] = {}
    for min_side, factor in sorted(factors.items(), key=lambda pair: pair[1]):
        if factor not in images:
            images[factor] = read_image(source, max_pixels, data, min_side, max_seconds)
    return {min_side: images[factor] for min_side, factor in factors.items()}


def set_max_pixels(max_pixels: int = MAX_PIXELS) -> None:
    """Set the number of pixels above which this process refuses a picture, for all calls that name no other limit.

    Raises:
        InputError: if it is less than one.

    >>> set_max_pixels(108_000_000)  # for the pictures of a phone
    >>> set_max_pixels()  # the default again
    """
    global _max_pixels
    if max_pixels < 1:
        raise InputError(f"max_pixels must be 1 or more, but is {max_pixels}")
    _max_pixels = max_pixels


def get_max_pixels() -> int:
    """The number of pixels above which this process refuses a picture."""
    return _max_pixels


def _draft(image: Image.Image, factor: int) -> Image.Image:
    """Let the decoder divide the sides of a JPEG by 1, 2, 4 or 8."""
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))
    return image


def _read_jpeg_without_end(data: bytes, name: str, max_pixels: int, factor: int) -> Image.Image:
    """Read a JPEG that has no end marker, if nothing else is missing."""
    # A decoder completes missing pixels without an error. Whether any are missing shows when other bytes follow the
    # data: they are ignored after a complete picture, and change an incomplete one.

    def decode(end: bytes) -> Image.Image:
        return finish_image(_draft(open_image(data + end, name, max_pixels)[0], factor), name)

    try:
        # Decoding twice, and with the filler, must not cost more than is allowed for one that is complete.
        work = read_jpeg(data, MAX_SCANNED_SAMPLES_PER_PIXEL * max_pixels // 3)
    except TooCostly as error:
        raise ImageError(name, _reason(error)) from error
    if not work.has_all_scans:
        raise ImageError(name, "file is truncated")
    data = data.rstrip(b"\xff")  # the first half of the end marker would make a marker with what follows
    digest = _digest(decode(_FILLERS + END_OF_JPEG))  # not its pixels: two pictures are too many
    image = decode(END_OF_JPEG)
    if _digest(image) != digest:
        raise ImageError(name, "file is truncated")
    return image


def _digest(rgb: Image.Image) -> bytes:
    """By bands, since the bytes of a whole picture would be one more copy of it."""
    digest, rows = blake2b(digest_size=16), max(_BAND_PIXELS // rgb.width, 1)
    for top in range(0, rgb.height, rows):
        digest.update(rgb.crop((0, top, rgb.width, min(top + rows, rgb.height))).tobytes())
    return digest.digest()


def open_image(data: bytes, name: str, max_pixels: int) -> tuple[Image.Image, bool]:
    """The picture of a file before decoding, and whether it is a JPEG with several scans; size and cost are checked."""
    kind, reader = _kind(data)
    if not kind:
        raise ImageError(name, "not an image" if data else "file is empty")
    if reader is None:
        raise ImageError(name, f"unsupported type ({kind})")
    module, _, cls = reader.rpartition(".")
    try:  # nothing is registered with Pillow, whose own functions stay as they are
        opener = getattr(importlib.import_module(module), cls)
    except ImportError as error:
        # A reason is short, and the server sends it to clients: it must not name the folder of an installation.
        hint = "the extra heic: pip install pi-heif" if kind == "HEIC" else "a newer Pillow: pip install -U pillow"
        raise ImageError(name, f"{kind} needs {hint}") from error
    try:
        is_multi_scan = kind == "JPEG" and read_jpeg(data, MAX_SCANNED_SAMPLES_PER_PIXEL * max_pixels).is_multi_scan
        image: Image.Image = opener(io.BytesIO(data), "")
    except Exception as error:  # decoders raise any exception on damaged headers
        raise ImageError(name, _reason(error)) from error
    _check_size(image.size, name, max_pixels)
    return image, is_multi_scan


def finish_image(image: Image.Image, name: str) -> Image.Image:
    """Decode a picture of `open_image`, which may be changed, convert it to mode RGB and rotate it upright."""
    size = image.size
    try:
        image.load()
        if image.width * image.height > size[0] * size[1]:  # the container of HEIC may say less than its content
            raise ImageError(name, "file is damaged")
        return _upright(_rgb(image, name), image)
    except ImageError:
        raise
    except Exception as error:  # decoders raise any exception on damaged files
        raise ImageError(name, _reason(error)) from error


def image_bytes(source: ImageSource) -> bytes:
    """The bytes that identify a picture: those of its file, or mode, size and upright pixels of a picture in memory.

    If a file is not a picture, only its beginning is read.

    Raises:
        ImageError: if the file can't be read or is not a picture, or the picture in memory is invalid.
        InputError: if the source is neither a path, a PIL picture nor an array.
    """
    if not isinstance(source, (str, Path)):
        image = read_image(source)
        return f"{image.mode} {image.width} {image.height} ".encode() + image.tobytes()
    name = source_name(source)
    try:
        with open_regular(source) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MAX_FILE_BYTES:
                raise ImageError(name, f"too large: {size >> 20} MiB (limit {_MAX_FILE_BYTES >> 20})")
            start = file.read(_MAGIC_BYTES)
            if not start:
                raise ImageError(name, "file is empty")
            if not _kind(start)[0]:
                raise ImageError(name, "not an image")
            return start + file.read(_MAX_FILE_BYTES)
    except (FileNotFoundError, ValueError) as error:  # ValueError: a null character
        if isinstance(error, ImageError):
            raise
        raise ImageError(name, "no such file") from error
    except OSError as error:
        why = "not a file" if error.errno == errno.EINVAL else f"can't be opened: {error.strerror}"
        raise ImageError(name, why) from error


def stop_decoding() -> None:
    """End the decoder processes. Calls that wait for one raise ImageError; later calls start new processes."""
    DECODER_PROCESSES.stop()


def is_slow_file(data: bytes, max_pixels: int) -> bool:
    """Whether `read_image` decodes a file in a process, or it has more samples than a photograph of 24 megapixels."""
    kind = _kind(data)[0]
    if is_slow(kind, data):
        return True
    width, height = open_image(data, "picture", max_pixels)[0].size
    # Each scan of a JPEG is decoded; in other formats most pictures become three channels.
    samples = read_jpeg(data).scanned_samples if kind == "JPEG" else 3 * width * height
    return samples > MAX_FAST_SAMPLES


def image_format(data: bytes) -> str:
    """The format of a file by its first bytes, a name of ``FORMAT_NAMES``; "" if it is none of them."""
    name = _kind(data)[0].lower().replace(" ", "")
    return name if name in FORMAT_NAMES else ""


def shrink_factor(data: bytes, size: tuple[int, int], min_side: int) -> int:
    """The factor by which `read_image` divides the sides of a file of this size for ``shrink_to``; 1: no change."""
    if not data.startswith(_JPEG):
        return 1
    # Only a divisor of both sides: else the aspect ratio changes a little, and the resized picture shifts.
    fits = (factor for factor in (8, 4, 2) if not any(side % factor for side in size))
    return next((factor for factor in fits if min(size) >= factor * min_side), 1)


def source_name(source: object) -> str:
    """The name of a picture in messages.

    Raises:
        InputError: if the source is neither a path nor a PIL picture nor a numpy array.
    """
    import numpy as np
    from PIL import Image

    if isinstance(source, (str, Path)):
        return encodable(source)
    if isinstance(source, Image.Image):
        return f"PIL picture ({source.mode}, {source.width}x{source.height})"
    if isinstance(source, np.ndarray):
        return f"array {source.shape} {source.dtype}"
    kind = type(source).__name__
    raise InputError(f"a picture can't be read from {kind}: give a path, a PIL picture or a numpy array")


def _kind(data: bytes) -> tuple[str, str | None]:
    """Name of the format, and of the class that reads it; "" if it is not a picture."""
    head = data[:_MAGIC_BYTES]
    return next(((kind, reader) for kind, magic, reader in _FORMATS if re.match(magic, head, re.DOTALL)), ("", None))


def _reason(error: Exception) -> str:
    from PIL import Image

    if isinstance(error, TooCostly):
        return str(error)
    if isinstance(error, MemoryError):
        return "too large for the memory of this machine"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return "too large"
    text = str(error).lower()
    if "truncated" in text:
        return "file is truncated"
    if "unsupported" in text or "unknown" in text:
        return f"unsupported kind of file ({text})"
    return "file is damaged"


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if min(size) < 1:
        raise ImageError(name, "has no pixels")
    if width * height > max_pixels:
        million = f"{width * height / 1e6:.4g} million pixels (limit {max_pixels / 1e6:.4g}"
        raise ImageError(name, f"too large: {million}; --max-pixels or set_max_pixels raises it)")
    if max(size) > MAX_SIDE_RATIO * min(size):
        raise ImageError(name, f"extreme shape: {width}x{height} (one side over {MAX_SIDE_RATIO} times the other)")


def _rgb(image: Image.Image, name: str) -> Image.Image:
    from PIL import Image

    plain = not (image.has_transparency_data or image.mode[0] in "IF")
    if plain and image.mode == "RGB":
        return image
    width, height = image.size
    rows = max(_BAND_PIXELS // width, 1)
    bands = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    white = _white_level(image, bands)
    if plain or len(bands) == 1:
        return _convert(image, name, white)
    rgb = Image.new("RGB", image.size)
    for band in bands:
        rgb.paste(_convert(image.crop(band), name, white), band[:2])
    return rgb


def _white_level(image: Image.Image, bands: Sequence[tuple[int, int, int, int]]) -> int:
    """The value of white in 16-bit grey: that of 12 bits if no pixel is above it, as cameras and scanners write it."""
    # A dark picture of 16 bits without a value above a sixteenth of white is read too bright: it can't be told apart.
    import numpy as np

    if not image.mode.startswith("I"):
        return WHITE_16_BIT
    is_12_bit = all(int(np.asarray(image.crop(band)).max()) <= WHITE_12_BIT for band in bands)
    return WHITE_12_BIT if is_12_bit else WHITE_16_BIT


def _convert(image: Image.Image, name: str, white: int) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):
        # Pillow would clip at 255. 16-bit grey is I;16 in new versions, I in old ones.
        values = np.asarray(image).astype(np.float32) * 255 / white  # exact for white itself
        if values.min() < 0 or values.max() > 255:
            raise ImageError(name, "unsupported pixel values: grey of more than 16 bits")
        image = Image.fromarray((values + 0.5).astype(np.uint8))
    elif image.mode == "F":
        image = _from_array(np.asarray(image), name)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGBA", rgba.size, "white")
        image.alpha_composite(rgba)
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(name, f"unsupported colour mode ({image.mode})") from error


def _upright(rgb: Image.Image, stored: Image.Image) -> Image.Image:
    from PIL.Image import Transpose

    # Of the EXIF orientations 2 to 8, in their order.
    names = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90"]
    transpositions = {number: Transpose[name] for number, name in enumerate(names, start=2)}
    try:
        if stored.format != "JPEG":  # the EXIF block of a JPEG was checked before Pillow read it
            exif = stored.info.get("exif")
            if exif is None and (text := stored.info.get("Raw profile type exif")):  # of a PNG of ImageMagick
                exif = bytes.fromhex("".join(text.split("\n")[3:]))  # after an empty line, "exif" and the length
            check_exif(exif or b"")
        transposition = transpositions.get(stored.getexif().get(0x0112, 1))  # tag Orientation
    except TooCostly:
        raise
    except Exception:  # a damaged EXIF block must not make the picture unreadable
        return rgb
    return rgb if transposition is None else rgb.transpose(transposition)


def _from_array(array: NDArray[Any], name: str) -> Image.Image:
    import numpy as np
    from PIL import Image

    shape = array.shape[:2] if array.ndim == 3 and array.shape[2] == 1 else array.shape
    if len(shape) != 2 and not (len(shape) == 3 and shape[2] in (3, 4)):
        raise ImageError(name, "unsupported shape: expected (h, w), (h, w, 1), (h, w, 3) or (h, w, 4)")
    if array.size == 0:
        raise ImageError(name, "has no pixels")
    if array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):
            raise ImageError(name, "float values outside 0..1: divide by the largest value first")
        array = np.rint(array * np.float32(255)).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(name, "unsupported dtype: expected uint8, or floats in 0..1")
    return Image.fromarray(np.ascontiguousarray(array.reshape(shape)))
