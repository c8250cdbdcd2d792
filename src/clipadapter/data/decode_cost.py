"""Which files cost more to decode than their pixels justify.

Time and memory of a decoder depend on more than the pixels. Each scan of a JPEG processes all blocks again, tags of a
TIFF can all refer to the same bytes, and Pillow's parsers loop in Python over segments, chunks and blocks. A JPEG that
costs too much is refused. Other files whose structure is unusual are decoded by a process whose time and memory are
limited (`decode_process`), so that a rough test is enough for them.
"""

from __future__ import annotations

import re
import struct
import sys
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from itertools import islice, takewhile

from clipadapter.data.image_notes import iterate_gif
from clipadapter.errors import ClipAdapterError

MAX_SCANNED_SAMPLES_PER_PIXEL = 20
"""Samples that all scans of a JPEG may process, per pixel of ``max_pixels``. Ten scans commonly need 8 to 14."""
MAX_FAST_SAMPLES = 40_000_000
"""Samples that a decoder processes for a photograph of 24 megapixels in JPEG (36 million), or of 12 in another format.
They take 0.5 to 0.8 seconds of one core; a server has places of their own for pictures that take longer."""
JPEG_LIMITS = {
    "segments": 2_000,
    "bytes between segments": 1 << 16,  # Pillow skips them one at a time
    "bytes of quantization tables": 1 << 16,  # valid files have at most four tables of 129 bytes
    "EXIF segments": 16,
    "Photoshop segments": 128,
}
"""What a JPEG may have before its first scan, which Pillow reads in Python; segments are counted in the whole file."""
MAX_PARTS = 4_096
"""Parts of a PNG, a WebP or a GIF before its first frame that Pillow reads one by one, and bytes of a PPM's header. A
PNG may have one more part per KiB: libpng writes 8 KiB per chunk."""
MAX_PACKED_TEXTS = 8
"""Compressed texts of a PNG, each of which can unpack to 1 MiB, as a colour profile can. Most have one or two."""
MAX_TAGS = 1 << 16  # tags of a directory of TIFF or EXIF. BigTIFF could have 2^64
MAX_VALUE_BYTES = 1 << 20
"""Bytes of a tag that Pillow makes Python numbers of. The longest usual one is a palette of 16 bits, with 393,216."""
MAX_OVERLAP = 4
"""Bytes that the tags of a directory may refer to, relative to those that there are. Without overlap it is below 1."""

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value by the TIFF type of a tag: 1 is BYTE, 3 SHORT, 4 LONG, 5 RATIONAL, 12 DOUBLE, 16 LONG8."""
_COMPRESSION, _STRIP_BYTES, _TILE_BYTES = 259, 279, 325  # TIFF tags Compression, StripByteCounts and TileByteCounts
_FAST_COMPRESSIONS = frozenset((1, 5, 8, 32773, 32946))
"""Values of tag Compression: none, LZW, Deflate, PackBits, and the older number of Deflate."""
_PPM_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_FAST_PPM = re.compile(rb"P(?:4(?:%b\d+){2}|[56](?:%b\d+){2}%b(?:255|65535))\s" % (_PPM_GAP, _PPM_GAP, _PPM_GAP))
"""The header of a bitmap, or of a binary file with the usual maximum; others are read in Python."""
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_ALONE = frozenset((0x01, 0xC8, 0xD8, *range(0xF0, 0xFE)))
"""Second bytes of JPEG markers without a length, or after which Pillow reads none."""
_SOS, _EOI, _DQT, _EXIF, _PHOTOSHOP = 0xDA, 0xD9, 0xDB, 0xE1, 0xED


class TooCostly(ClipAdapterError):
    """Decoding a file would cost more than its pixels justify. The message says which limit was exceeded."""


def is_slow(kind: str, data: bytes) -> bool:
    """Whether decoding a file takes seconds, blocks other threads, or may cost far more than its pixels justify.

    JPEG 2000 and AVIF are decoded under Python's global lock, parts of PPM and BMP in Python. HEIC and some
    compressions of TIFF are formats of their own with a structure that is not checked here.

    >>> is_slow("PPM", b"P3 1 1 255 1 2 3"), is_slow("PPM", b"P6 1 1 255 abc")
    (True, False)
    """
    if kind == "PPM":
        return not _FAST_PPM.match(data, 0, MAX_PARTS)
    if kind == "BMP":
        return data[30:31] in (b"\x01", b"\x02")  # run-length encoding; in the oldest headers these bytes are pixels
    if kind in ("PNG", "WebP"):
        limit = MAX_PARTS + len(data) // 1024
        chunks = Counter(islice(_iterate_chunks(kind, data), limit))
        packed = chunks[b"iCCP"], chunks[b"zTXt"] + chunks[b"iTXt"]
        return chunks.total() == limit or packed[0] > 1 or packed[1] > MAX_PACKED_TEXTS
    if kind == "GIF":
        parts = takewhile(lambda part: part != b",", islice(iterate_gif(data), MAX_PARTS))
        return sum(1 for _ in parts) == MAX_PARTS
    if kind == "TIFF":
        return any(_is_costly_directory(data, is_big, _FAST_COMPRESSIONS) for is_big in _layouts(data))
    return kind in ("JPEG 2000", "AVIF", "HEIC")


def check_exif(exif: bytes) -> None:
    """Refuse an EXIF block whose tags refer to the same bytes many times, or have millions of values."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    if any(_is_costly_directory(exif, is_big) for is_big in _layouts(exif)):
        raise TooCostly(
            f"too costly to decode: EXIF tags that need more bytes than there are (limit {MAX_OVERLAP} times)"
        )


@dataclass
class JpegWork:
    """The work of a JPEG decoder."""

    scanned_samples: int = 0  # by all scans
    is_multi_scan: bool = False  # the decoder keeps the coefficients of the whole picture
    has_all_scans: bool = False  # they give all coefficients of all components in full precision


@dataclass
class _Frame:
    """A JPEG's frame header."""

    blocks: int  # 8 x 8, of a component of full size
    is_progressive: bool
    areas: dict[int, int]  # product of the sampling factors of each component
    full_area: int
    precise: set[tuple[int, int]] = field(default_factory=set)  # component and coefficient that have all bits

    def add_scan(self, components: bytes, selection: bytes) -> int:
        """Record a scan by its first and last coefficient and the bits that later scans refine; returns its samples."""
        if len(selection) == 3 and not selection[2] & 15:
            own = range(selection[0], min(selection[1], 63) + 1)
            self.precise.update((each, i) for each in self.areas.keys() & set(components) for i in own)
        return 64 * self.blocks * sum(self.areas.get(each, 1) for each in components) // self.full_area


def read_jpeg(data: bytes, max_scanned_samples: int = sys.maxsize) -> JpegWork:
    """Count the work of decoding a JPEG from its markers; in one with a single scan its coefficients are not read."""
    # Damage ends the count, as it ends the decoder. TooCostly: there are too many scans or segments.
    work, counts, exif, scans, at = JpegWork(), Counter[str](), b"", 0, 2
    frame: _Frame | None = None
    while (marker := _MARKER.search(data, at)) and (kind := marker[0][1]) != _EOI:
        counts["segments"] += 1
        junk, at = marker.start() - at, marker.end()
        body = b"" if kind in _ALONE else data[at + 2 : at + int.from_bytes(data[at : at + 2], "big")]
        at += 0 if kind in _ALONE else 2 + len(body)
        _check_segment(counts, *((0, b"", 0) if scans else (kind, body, junk)))
        if kind == _EXIF and body.startswith(b"Exif\0\0") and not scans:
            exif += body[6:]
        elif kind in _SOF and len(body) >= 6:
            frame = _read_frame(kind, body)
        elif kind == _SOS:
            scans += 1
            if scans == 1:
                check_exif(exif)
            if frame is None or not body:
                break
            components = body[1 : 1 + 2 * body[0] : 2]
            work.scanned_samples += frame.add_scan(components, body[1 + 2 * body[0] :][:3])
            _check_limit(work.scanned_samples, max_scanned_samples, "samples in all scans", 1_000_000)
            work.has_all_scans = len(frame.precise) == 64 * len(frame.areas)
            work.is_multi_scan = frame.is_progressive or len(components) < len(frame.areas)
            if not work.is_multi_scan:
                break
    if not (marker or scans):
        _check_segment(counts, 0, b"", len(data) - at)
    return work


def _check_segment(counts: Counter[str], kind: int, body: bytes, junk: int) -> None:
    """Count a segment before the first scan, and the bytes without meaning before it."""
    counts["bytes between segments"] += junk
    counts["bytes of quantization tables"] += len(body) if kind == _DQT else 0
    counts["Photoshop segments"] += kind == _PHOTOSHOP
    counts["EXIF segments"] += kind == _EXIF and body.startswith(b"Exif\0\0")
    for what, count in counts.items():
        _check_limit(count, JPEG_LIMITS[what], what)


def _read_frame(marker: int, body: bytes) -> _Frame:
    _, height, width, count = struct.unpack_from(">BHHB", body)
    triples = [body[i : i + 3] for i in range(6, min(6 + 3 * count, len(body) - 2), 3)]
    factors = {one[0]: (one[1] >> 4, one[1] & 15) for one in triples if one[1] >> 4 and one[1] & 15}
    full_area = max((h for h, _ in factors.values()), default=1) * max((v for _, v in factors.values()), default=1)
    blocks = -(-width // 8) * -(-height // 8)
    return _Frame(blocks, marker in _PROGRESSIVE, {key: h * v for key, (h, v) in factors.items()}, full_area)


def _iterate_chunks(kind: str, data: bytes) -> Iterator[bytes]:
    """The kinds of the chunks of a PNG or WebP."""
    at = 8 if kind == "PNG" else 12
    while at + 8 <= len(data):
        first, second = data[at : at + 4], data[at + 4 : at + 8]
        yield second if kind == "PNG" else first
        length = int.from_bytes(first, "big") + 4 if kind == "PNG" else int.from_bytes(second, "little")
        at += 8 + length + (length & 1 if kind == "WebP" else 0)  # to an even length; behind that of PNG is a checksum


def _layouts(data: bytes) -> list[bool]:
    """Whether to read the directory as BigTIFF. In one case Pillow and libtiff differ, and both are checked."""
    if data[:2] == b"II":
        return [data[2:3] == b"\x2b"]
    return [False, True] if b"\x2b" in data[2:4] else [False]


def _is_costly_directory(data: bytes, is_big: bool, compressions: Container[int] = range(1 << 16)) -> bool:
    """Whether the tags of a TIFF or EXIF block refer to far more bytes than it has, or need a slow decoder."""
    # If tag Compression occurs twice, readers differ in which one they use: both must have a fast decoder.
    total, order = 0, "little" if data[:2] == b"II" else "big"
    for count, (tag, kind, at, size) in enumerate(_iterate_tags(data, is_big)):
        values, step = memoryview(data)[at : at + size], _TYPE_BYTES.get(kind, 1)
        total += len(values)
        # Of other tags, such as colour profiles, Pillow keeps the bytes.
        if count == MAX_TAGS or (tag < 1000 and size > MAX_VALUE_BYTES):
            return True
        if tag in (_STRIP_BYTES, _TILE_BYTES):
            sizes = (int.from_bytes(values[i : i + step], order) for i in range(0, len(values), step))  # type: ignore[arg-type]
            total += sum(min(one, len(data)) for one in sizes) // 4  # some programs write sizes that are too large
        if total > MAX_OVERLAP * len(data) + MAX_VALUE_BYTES:
            return True
        if tag == _COMPRESSION and int.from_bytes(values[:2], order) not in compressions:  # type: ignore[arg-type]
            return True
    return False


def _iterate_tags(data: bytes, is_big: bool) -> Iterator[tuple[int, int, int, int]]:
    """Number, type, position and bytes of each complete tag of the first directory; no bytes if the type is unknown."""
    order = "<" if data[:2] == b"II" else ">"
    word, number, inline = ("Q", "Q", 8) if is_big else ("I", "H", 4)
    entry = order + "HH" + word
    try:
        (start,) = struct.unpack_from(order + word, data, 8 if is_big else 4)
        (count,) = struct.unpack_from(order + number, data, start)
        place = start + struct.calcsize(order + number)
        for _ in range(count):
            tag, kind, values = struct.unpack_from(entry, data, place)
            place += struct.calcsize(entry)
            size = values * _TYPE_BYTES.get(kind, 0)
            yield tag, kind, place if size <= inline else struct.unpack_from(order + word, data, place)[0], size
            place += inline
    except (struct.error, OverflowError):
        return


def _check_limit(value: int, limit: int, what: str, unit: int = 1) -> None:
    if value > limit:
        number = f"{value / unit:.6g}{' million' if unit > 1 else ''}"
        raise TooCostly(f"too costly to decode: {number} {what} (limit {limit / unit:.6g})")
