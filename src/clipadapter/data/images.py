"""Any picture a person has, as an upright RGB picture of the right colours, or a plain reason why not.

The type of a file is told from its first bytes, never from its name; only the formats of ``_KINDS`` are read.
Pillow's own `Image.open` is not used: its guard against huge files is a process-wide setting and a warning,
which can't be silenced in one thread alone. All functions are safe to call from threads.
"""

from __future__ import annotations

import importlib
import io
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clipadapter.data._base import shown
from clipadapter.errors import ImageError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

ImageSource: TypeAlias = "str | Path | Image.Image | NDArray[Any]"

MAX_PIXELS = 100_000_000
MAX_RATIO = 100
_MAX_FILE_BYTES = 1 << 30

_JPEG = b"\xff\xd8\xff"
_SUFFIXES = "jpg jpeg jpe jfif mpo png webp gif bmp tif tiff ppm pgm pbm pnm avif jp2"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split(" "))
"""Lower-case suffixes of the files that are taken from folders."""

# What the first bytes are, and the Pillow class that reads it; None: known, but not supported.
_KINDS: tuple[tuple[str, bytes, str | None], ...] = (
    ("JPEG", _JPEG, "JpegImagePlugin.JpegImageFile"),
    ("PNG", rb"\x89PNG\r\n\x1a\n", "PngImagePlugin.PngImageFile"),
    ("WebP", rb"RIFF....WEBP", "WebPImagePlugin.WebPImageFile"),
    ("GIF", rb"GIF8[79]a", "GifImagePlugin.GifImageFile"),
    ("BMP", rb"BM.{8}", "BmpImagePlugin.BmpImageFile"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]", "TiffImagePlugin.TiffImageFile"),
    ("PPM", rb"P[1-6]\s", "PpmImagePlugin.PpmImageFile"),
    ("AVIF", rb"....ftypavi[fs]", "AvifImagePlugin.AvifImageFile"),
    ("JPEG 2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "Jpeg2KImagePlugin.Jpeg2KImageFile"),
    ("HEIC", rb"....ftyp(hei|hev|mif1|msf1)", None),
    ("video", rb"....ftyp", None),
    ("SVG", rb"(\xef\xbb\xbf)?\s*(<\?xml.{,900}?)?<(svg|!DOCTYPE svg)", None),
    ("PDF", rb"%PDF", None),
    ("PostScript", rb"%!PS", None),
)


def read_image(
    source: ImageSource, max_pixels: int = MAX_PIXELS, data: bytes | None = None, shrink_to: int | None = None
) -> Image.Image:
    """A picture in mode RGB, upright as EXIF says.

    What is transparent becomes white, 16-bit grey is scaled, and an animation gives its first frame.

    Args:
        source: path, PIL picture, or array of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), of uint8 or of
            floats in 0..1.
        max_pixels: larger pictures are refused before they are unpacked.
        data: the file's bytes if they were read already (see `image_bytes`), so that a file is read once.
        shrink_to: a JPEG file is unpacked at a half, a quarter or an eighth of its size, which is faster, if its
            shorter side keeps so many pixels and both sides can be divided; None keeps every pixel.

    Raises:
        ImageError: if the picture can't be read; also if one side is over 100 times the other, since resizing
            by the shorter side would fill the memory.
        InputError: if the source is nothing that can be a picture.

    >>> import numpy as np
    >>> read_image(np.array([[0.0, 1.0]])).getpixel((1, 0))
    (255, 255, 255)
    """
    from PIL import Image

    name = source_name(source)
    factor = 1
    if isinstance(source, (str, Path)):
        data = image_bytes(source) if data is None else data
        image = _open(data, name)
        factor = 1 if shrink_to is None else shrink_factor(data, image.size, shrink_to)
    elif isinstance(source, Image.Image):
        image = source
    else:
        image = _from_array(source, name)
    _check_size(image.size, name, max_pixels)
    try:
        if factor > 1:
            image.draft(None, (image.width // factor, image.height // factor))
        image.load()
        return _upright(_rgb(image, name), image)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(name, "too large for the memory of this machine") from error
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise ImageError(name, _reason(error)) from error


def image_bytes(source: ImageSource) -> bytes:
    """What identifies a picture: the bytes of its file, or mode, size and upright pixels of one in memory.

    Raises:
        ImageError: if the file can't be read, or the picture in memory is none.
        InputError: if the source is nothing that can be a picture.
    """
    if not isinstance(source, (str, Path)):
        image = read_image(source)
        return f"{image.mode} {image.width} {image.height} ".encode() + image.tobytes()
    path, name = Path(source), source_name(source)
    try:
        status = path.stat()
        regular = stat.S_ISREG(status.st_mode)
        if regular and status.st_size <= _MAX_FILE_BYTES:
            return path.read_bytes()
    except (FileNotFoundError, ValueError) as error:  # ValueError: a null character
        raise ImageError(name, "no such file") from error
    except OSError as error:
        raise ImageError(name, f"can't be opened: {error.strerror}") from error
    limit = f"{status.st_size >> 20} MiB (limit {_MAX_FILE_BYTES >> 20})"
    raise ImageError(name, f"too large: {limit}" if regular else "not a file")


def shrink_factor(data: bytes, size: tuple[int, int], least: int) -> int:
    r"""By how much `read_image` divides the sides of a file for ``shrink_to``; 1 leaves them.

    Args:
        data: bytes of the file, of which the first tell its type.
        size: width and height in pixels.
        least: ``shrink_to``.

    >>> shrink_factor(b"\xff\xd8\xff", (4000, 3000), 700), shrink_factor(b"\xff\xd8\xff", (4001, 3000), 700)
    (4, 1)
    """
    if not data.startswith(_JPEG):
        return 1
    # Only what divides both sides: else the proportions change a little, and the picture that is scaled next moves.
    fits = (factor for factor in (8, 4, 2) if not any(side % factor for side in size))
    return next((factor for factor in fits if min(size) >= factor * least), 1)


def source_name(source: object) -> str:
    """How messages call a picture.

    Raises:
        InputError: if the source is neither a path nor a PIL picture nor a numpy array.
    """
    import numpy as np
    from PIL import Image

    if isinstance(source, (str, Path)):
        return shown(source)
    if isinstance(source, Image.Image):
        return f"PIL picture ({source.mode}, {source.width}x{source.height})"
    if isinstance(source, np.ndarray):
        return f"array {source.shape} {source.dtype}"
    kind = type(source).__name__
    raise InputError(f"a picture can't be read from {kind}: give a path, a PIL picture or a numpy array")


def _open(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ImageError(name, "file is empty")
    kind, reader = next(
        ((kind, reader) for kind, magic, reader in _KINDS if re.match(magic, data[:1024], re.DOTALL)),
        ("", None),
    )
    if not kind:
        raise ImageError(name, "not an image")
    try:
        if reader is None:
            raise ImportError
        module, cls = reader.split(".")
        opener = getattr(importlib.import_module(f"PIL.{module}"), cls)
    except ImportError as error:
        raise ImageError(name, f"unsupported type ({kind})") from error
    try:
        image: Image.Image = opener(io.BytesIO(data), "")
    except Exception as error:  # a decoder's header code raises whatever it likes on damaged files
        raise ImageError(name, _reason(error)) from error
    return image


def _reason(error: Exception) -> str:
    from PIL import Image

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
        million = f"{width * height / 1e6:.4g} million pixels (limit {max_pixels / 1e6:.4g})"
        raise ImageError(name, f"too large: {million}")
    if max(size) > MAX_RATIO * min(size):
        raise ImageError(name, f"extreme shape: {width}x{height} (one side over {MAX_RATIO} times the other)")


def _rgb(image: Image.Image, name: str) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):
        # Pillow would clip at 255; 16-bit grey is I;16 in new versions, I in old ones.
        values = np.asarray(image).astype(np.float32) / 257
        if values.min() < 0 or values.max() > 255:
            raise ImageError(name, "unsupported pixel values: grey of more than 16 bits")
        image = Image.fromarray((values + 0.5).astype(np.uint8))
    elif image.mode == "F":
        image = _from_array(np.asarray(image), name)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        white.alpha_composite(rgba)
        image = white
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ImageError(name, f"unsupported colour mode ({image.mode})") from error


def _upright(rgb: Image.Image, stored: Image.Image) -> Image.Image:
    from PIL.Image import Transpose

    turns: dict[Any, Transpose] = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(stored.getexif().get(0x0112))
    except Exception:  # a broken EXIF block must not cost the picture
        return rgb
    return rgb if turn is None else rgb.transpose(turn)


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
