"""Checks of the cost of decoding from the structure of a file, so that decompression bombs are refused beforehand.

Time and memory of a decoder depend on more than the pixels. Each scan of a JPEG processes all blocks again, tags of a
TIFF can all refer to the same bytes, and Pillow's parsers loop in Python over segments and chunks. Each check counts
such work in one pass over the structure, and stops when a limit is exceeded.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from clipadapter.errors import ClipAdapterError

MAX_SCANNED_SAMPLES_PER_PIXEL = 20
"""Samples that all scans of a JPEG may process, per pixel of ``max_pixels``. Ten scans commonly need 8 to 14."""
MAX_JPEG_SEGMENTS = 2_000
"""Segments of a JPEG. Pillow reads each segment before the first scan in Python."""
MAX_EXIF_SEGMENTS = 16
"""Segments of a JPEG with an EXIF block, up to 64 KiB each."""
MAX_QUANTIZATION_BYTES = 1 << 16
"""Bytes of all quantization tables of a JPEG. Valid files have at most four tables of 129 bytes."""
MAX_PHOTOSHOP_SEGMENTS = 128
"""Segments of a JPEG with Photoshop data, which Pillow parses in Python, up to 64 KiB each."""
MAX_JUNK_BYTES = 1 << 16
"""Bytes without meaning between the parts of a header. Pillow skips them one at a time."""
MIN_CHUNKS = 10_000
MIN_BYTES_PER_CHUNK = 1_024
"""A PNG or WebP may have this many chunks, and one more per this many bytes. libpng writes 8 KiB per chunk."""
MAX_PROFILES = 16
"""Compressed colour profiles of a PNG, each of which can decompress to 1 MiB."""
MAX_GIF_BLOCKS = 65_536
"""Blocks of a GIF before its first frame. Pillow reads them one by one."""
MAX_GIF_COMMENT_BLOCKS = 4_096
"""Pillow joins the blocks of comments one by one: the time grows with the square of their number."""
MAX_TAGS = 65_536
"""Tags of a TIFF directory: as many as the 16-bit count of plain TIFF allows; that of BigTIFF has 64 bits."""
MAX_TAG_VALUES = 3 << 16
"""Values of one TIFF tag that Pillow converts to Python numbers. The longest valid tag is a 16-bit palette."""
MAX_OVERLAP = 4
"""Bytes that the tags of a TIFF refer to, relative to the file size. Without overlap it is at most 1."""
MAX_STRIP_OVERLAP = 16
"""The same for strips. Some programs write strip sizes that are too large."""
_SPARE_BYTES = 1 << 20
"""Bytes that the tags or strips of a TIFF may refer to beyond the multiple of its size: small files may pass."""
_MAX_HEADER_BYTES = 1 << 12
"""Bytes of the header of a PPM, which may have comments. Pillow reads it byte by byte."""
MAX_FAST_SAMPLES = 40_000_000
"""Samples that a decoder processes for a photograph of 24 megapixels in JPEG (36 million), or of 12 in another format.
They take 0.5 to 0.8 seconds of one core; a server has places of their own for pictures that take longer."""
_SEARCH_BYTES = 1 << 20
"""Bytes searched at a time for the marker after a scan; other threads run in between."""

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value by the TIFF type of a tag: 1 is BYTE, 3 SHORT, 4 LONG, 5 RATIONAL, 12 DOUBLE, 16 LONG8."""
_INTEGERS = {3: "u2", 4: "u4", 16: "u8"}
"""Dtype of the TIFF types that byte counts can have: SHORT, LONG and LONG8."""
_COMPRESSION, _STRIP_BYTES, _TILE_BYTES = 259, 279, 325
"""TIFF tags Compression, StripByteCounts and TileByteCounts."""
_FAST_COMPRESSIONS = frozenset((1, 5, 8, 32773, 32946))
"""Values of tag Compression: none, LZW, Deflate, PackBits, and the older number of Deflate."""
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_ALONE = frozenset((0x00, 0x01, 0xC8, *range(0xD0, 0xD9), *range(0xF0, 0xFE)))
"""Second bytes of JPEG markers without a length, or after which Pillow reads none."""
_SOS, _EOI, _DQT, _EXIF, _PHOTOSHOP = 0xDA, 0xD9, 0xDB, 0xE1, 0xED


class TooCostly(ClipAdapterError):
    """Decoding a file would cost more than its pixels justify. The message says which limit was exceeded."""


def check_cost(kind: str, data: bytes, max_pixels: int) -> bool:
    """Refuse a file whose decoding would cost far more than its pixels justify.

    Args:
        kind: "JPEG", "PNG", "GIF", "WebP", "TIFF" or "PPM"; other formats are not checked.
        data: the whole file.
        max_pixels: limit of pixels. The limit for the scans of a JPEG is proportional to it.

    Returns:
        Whether it is a JPEG with several scans, for which the decoder keeps the coefficients of the whole picture.

    Raises:
        TooCostly: if it would.
    """
    if kind == "JPEG":
        return read_jpeg(data, MAX_SCANNED_SAMPLES_PER_PIXEL * max_pixels).is_multi_scan
    if kind in _CHECKS:
        _CHECKS[kind](data)
    return False


def check_exif(exif: bytes) -> None:
    """Refuse an EXIF block whose tags refer to the same bytes many times, or have millions of values.

    Raises:
        TooCostly: if they do.
    """
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    _check_tags(exif, "EXIF")


def is_slow(kind: str, data: bytes) -> bool:
    """Whether decoding a file takes seconds or blocks other threads.

    JPEG 2000 and AVIF are decoded under Python's global lock, parts of PPM and BMP in Python. HEIC and some
    compressions of TIFF are formats of their own with a structure that is not checked here.

    >>> is_slow("PPM", b"P3 1 1 255 1 2 3"), is_slow("PPM", b"P6 1 1 255 abc")
    (True, False)
    """
    if kind == "PPM":
        return data[1:2] in b"123" or _ppm_maximum(data) not in (0, 255, 65535)
    if kind == "BMP":
        return data[30:31] in (b"\x01", b"\x02")  # run-length encoding; in the oldest headers these bytes are pixels
    if kind == "TIFF":
        return not _tiff_compressions(data) <= _FAST_COMPRESSIONS
    return kind in ("JPEG 2000", "AVIF", "HEIC")


def is_large(kind: str, data: bytes, pixels: int) -> bool:
    """Whether a decoder processes more samples than for a large photograph.

    Args:
        kind: as for `check_cost`.
        data: the whole file.
        pixels: of the picture.

    Raises:
        TooCostly: if a JPEG has too many segments.
    """
    # Each scan of a JPEG is decoded; in other formats most pictures become three channels.
    samples = read_jpeg(data, sys.maxsize).scanned_samples if kind == "JPEG" else 3 * pixels
    return samples > MAX_FAST_SAMPLES


@dataclass
class JpegWork:
    """The work of a JPEG decoder.

    Args:
        scanned_samples: samples that all scans process, including blocks of 64 beyond the edges.
        is_multi_scan: whether there are several scans, so that the coefficients of the whole picture are kept.
        has_all_scans: whether the scans give all coefficients of all components in full precision.
    """

    scanned_samples: int = 0
    is_multi_scan: bool = False
    has_all_scans: bool = False


@dataclass
class _Frame:
    """A JPEG's frame header: sampling factors (h, v) of each component, and those of its coefficients with all bits."""

    width: int
    height: int
    progressive: bool
    factors: dict[int, tuple[int, int]]
    precise: dict[int, set[int]] = field(default_factory=dict)

    @property
    def has_all_coefficients(self) -> bool:
        return all(len(self.precise.get(component, ())) == 64 for component in self.factors)

    def add_scan(self, components: bytes, selection: bytes) -> None:
        """Record the coefficients of a scan: the first, the last, and bits that later scans refine."""
        if len(selection) == 3 and not selection[2] & 15:
            for component in components:
                self.precise.setdefault(component, set()).update(range(selection[0], min(selection[1], 63) + 1))

    def scanned_samples(self, components: bytes) -> int:
        """Samples that a scan of these components processes."""
        most = [max((pair[i] for pair in self.factors.values()), default=1) for i in (0, 1)]
        chosen = [self.factors.get(component, (1, 1)) for component in components]
        if len(chosen) == 1:  # a scan of one component is not padded to whole groups of blocks
            columns = -(-self.width * chosen[0][0] // (8 * most[0]))
            rows = -(-self.height * chosen[0][1] // (8 * most[1]))
            return 64 * columns * rows
        groups = -(-self.width // (8 * most[0])) * -(-self.height // (8 * most[1]))
        return 64 * groups * sum(h * v for h, v in chosen)


@dataclass
class _Segments:
    """Counts of the segments of a JPEG, each with a limit."""

    count: int = 0
    junk: int = 0
    quantization: int = 0
    photoshop: int = 0
    exif: list[bytes] = field(default_factory=list)

    def add(self, marker: int, body: bytes) -> None:
        self.count += 1
        _check_limit(self.count, MAX_JPEG_SEGMENTS, "segments")
        if marker == _DQT:
            self.quantization += len(body)
            _check_limit(self.quantization, MAX_QUANTIZATION_BYTES, "bytes of quantization tables")
        elif marker == _PHOTOSHOP:
            self.photoshop += 1
            _check_limit(self.photoshop, MAX_PHOTOSHOP_SEGMENTS, "Photoshop segments")
        elif marker == _EXIF and body.startswith(b"Exif\0\0"):
            self.exif.append(body[6:])
            _check_limit(len(self.exif), MAX_EXIF_SEGMENTS, "EXIF segments")

    def skip(self, junk: int) -> None:
        self.junk += junk
        _check_limit(self.junk, MAX_JUNK_BYTES, "bytes between segments that mean nothing")


def read_jpeg(data: bytes, max_scanned_samples: int) -> JpegWork:
    """Count the work of decoding a JPEG from its markers. In a file with one scan its coefficients are not read.

    Args:
        data: the whole file. Damage ends the count, as it ends the decoder.
        max_scanned_samples: limit of the samples that all scans process.

    Raises:
        TooCostly: if there are too many scans or segments.
    """
    work, segments, frame, scans, at = JpegWork(), _Segments(), None, 0, 2
    while (marker := _next_marker(data, at, segments)) is not None:
        kind, at = data[marker + 1], marker + 2
        if kind in _ALONE:
            segments.add(kind, b"")
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : at + length]
        at += max(length, 2)
        if kind == _EOI:
            break
        segments.add(0 if scans else kind, body)  # Pillow parses only the segments before the first scan
        if kind in _SOF and len(body) >= 6:
            frame = _read_frame(kind, body)
        elif kind == _SOS:
            scans += 1
            if scans == 1:
                check_exif(b"".join(segments.exif))
            if frame is None or not body:
                break
            components = body[1 : 1 + 2 * body[0] : 2]
            frame.add_scan(components, body[1 + 2 * body[0] :][:3])
            work.has_all_scans = frame.has_all_coefficients
            work.scanned_samples += frame.scanned_samples(components)
            _check_limit(work.scanned_samples, max_scanned_samples, "samples in all scans", 1_000_000)
            work.is_multi_scan = frame.progressive or len(components) < len(frame.factors)
            if not work.is_multi_scan:
                break
            at = _end_of_scan(data, at)
    return work


def _next_marker(data: bytes, at: int, segments: _Segments) -> int | None:
    """Position of the next marker; None at the end of the file."""
    start = data.find(b"\xff", at)
    end = start
    while start >= 0 and data[end + 1 : end + 2] == b"\xff" and end - at <= MAX_JUNK_BYTES:
        end += 1
    segments.skip((end if start >= 0 else len(data)) - at)
    return end if start >= 0 and end + 1 < len(data) else None


def _end_of_scan(data: bytes, at: int) -> int:
    """Position of the marker after a scan. The search is in blocks, between which other threads can run."""
    while at < len(data):
        end = min(at + _SEARCH_BYTES, len(data))
        marker = _MARKER.search(data, at, end)
        if marker:
            return marker.start()
        at = end if end == len(data) else end - 1
    return len(data)


def _read_frame(marker: int, body: bytes) -> _Frame:
    _, height, width, count = struct.unpack_from(">BHHB", body)
    factors = {body[i]: (body[i + 1] >> 4, body[i + 1] & 15) for i in range(6, min(6 + 3 * count, len(body) - 2), 3)}
    return _Frame(width, height, marker in _PROGRESSIVE, {key: pair for key, pair in factors.items() if all(pair)})


def _check_png(data: bytes) -> None:
    profiles = 0
    for chunks, (kind, body, length) in enumerate(_iterate_chunks(data, 8, ">I4s", 4), 1):
        profiles += kind == b"iCCP"
        _check_limit(chunks, MIN_CHUNKS + len(data) // MIN_BYTES_PER_CHUNK, "chunks")
        _check_limit(profiles, MAX_PROFILES, "colour profiles")
        if kind == b"eXIf":
            check_exif(data[body : body + length])
        elif kind == b"IEND":
            break


def _check_webp(data: bytes) -> None:
    for chunks, _ in enumerate(_iterate_chunks(data, 12, "<4sI", 0), 1):
        _check_limit(chunks, MIN_CHUNKS + len(data) // MIN_BYTES_PER_CHUNK, "chunks")


def _iterate_chunks(data: bytes, at: int, layout: str, tail: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk, and position and length of its body."""
    while at + 8 <= len(data):
        first, second = struct.unpack_from(layout, data, at)
        kind, length = (first, second) if isinstance(first, bytes) else (second, first)
        yield kind, at + 8, length
        at += 8 + length + tail
        at += length & 1 if not tail else 0  # WebP's chunks have even lengths


def _check_gif(data: bytes) -> None:
    """Count the blocks before the first frame. Later blocks are not read."""
    at = 13 + (3 << ((data[10] & 7) + 1) if data[10:11] and data[10] & 128 else 0)
    blocks = comments = junk = 0
    while at < len(data) and data[at] not in b",;":
        if data[at] != 0x21:
            at, junk = at + 1, junk + 1
            _check_limit(junk, MAX_JUNK_BYTES, "bytes between blocks that mean nothing")
            continue
        comment, at = data[at + 1 : at + 2] == b"\xfe", at + 2
        while at < len(data) and data[at]:
            at += 1 + data[at]
            blocks += 1
            comments += comment
            _check_limit(blocks, MAX_GIF_BLOCKS, "blocks before the first frame")
            _check_limit(comments, MAX_GIF_COMMENT_BLOCKS, "blocks of comments")
        at += 1
        blocks += 1
        _check_limit(blocks, MAX_GIF_BLOCKS, "blocks before the first frame")


def _check_ppm(data: bytes) -> None:
    _ppm_maximum(data)


def _ppm_maximum(data: bytes) -> int:
    """The maximum value in the header of a PPM; 0 for a bitmap, which has none, and for a damaged header."""
    tokens: list[bytes] = []
    header = data[2:_MAX_HEADER_BYTES]
    n_tokens = 2 if data[1:2] in (b"1", b"4") else 3
    while len(tokens) < n_tokens:
        header = header.lstrip()
        if header.startswith(b"#"):
            end = re.search(rb"[\r\n]", header)
            header = header[end.end() :] if end else b""
        elif header:
            token = re.match(rb"[^\s#]+", header)
            tokens.append(token[0] if token else b"")
            header = header[len(tokens[-1]) :]
        else:
            _check_limit(len(data), _MAX_HEADER_BYTES, "bytes of header")
            return 0
    return int(tokens[2]) if n_tokens == 3 and tokens[2].isdigit() and len(tokens[2]) <= 9 else 0


@dataclass(frozen=True)
class _Tag:
    number: int
    type: int
    count: int
    at: int

    @property
    def size(self) -> int:
        return self.count * _TYPE_BYTES[self.type]


def _layouts(data: bytes) -> list[bool]:
    """Whether to read the directory as BigTIFF. In one case Pillow and libtiff differ, and both are checked."""
    if data[:2] == b"II":
        return [data[2:3] == b"\x2b"]
    return [False, True] if b"\x2b" in data[2:4] else [False]


def _iterate_tags(data: bytes, big: bool) -> Iterator[_Tag]:
    """Tags of the first directory of a TIFF file or EXIF block that are complete and have a known type."""
    order = "<" if data[:2] == b"II" else ">"
    word, number, inline = ("Q", "Q", 8) if big else ("I", "H", 4)
    entry = order + "HH" + word
    step = struct.calcsize(entry) + inline
    try:
        (start,) = struct.unpack_from(order + word, data, 8 if big else 4)
        (count,) = struct.unpack_from(order + number, data, start)
        start += struct.calcsize(order + number)
        for i in range(count):
            if i == MAX_TAGS:
                _check_limit(count, MAX_TAGS, "tags")
            tag, kind, values = struct.unpack_from(entry, data, start + i * step)
            place = start + (i + 1) * step - inline
            (at,) = struct.unpack_from(order + word, data, place)
            if kind in _TYPE_BYTES:
                yield _Tag(tag, kind, values, place if values * _TYPE_BYTES[kind] <= inline else at)
    except (struct.error, OverflowError):
        return


def _check_tags(data: bytes, name: str) -> None:
    for big in _layouts(data):
        total = 0
        for tag in _iterate_tags(data, big):
            total += max(min(tag.size, len(data) - tag.at), 0)
            _check_limit(total, MAX_OVERLAP * len(data) + _SPARE_BYTES, f"bytes that {name} tags refer to")
            if tag.number < 1000:  # for others, such as colour profiles, Pillow keeps the bytes
                _check_limit(tag.count, MAX_TAG_VALUES, f"values of {name} tag {tag.number}")


def _check_tiff(data: bytes) -> None:
    import numpy as np

    _check_tags(data, "TIFF")
    order = "<" if data[:2] == b"II" else ">"
    for big in _layouts(data):
        for tag in _iterate_tags(data, big):
            if tag.number in (_STRIP_BYTES, _TILE_BYTES) and tag.type in _INTEGERS:
                values = data[tag.at : tag.at + tag.size]
                kind = np.dtype(order + _INTEGERS[tag.type])
                sizes = np.frombuffer(values, kind, len(values) // kind.itemsize).astype(np.float64)
                total = int(np.minimum(sizes, len(data)).sum())
                _check_limit(total, MAX_STRIP_OVERLAP * len(data) + _SPARE_BYTES, "bytes in all strips")


def _tiff_compressions(data: bytes) -> set[int]:
    """Numbers of the compression. If the tag occurs twice there are two: readers differ in which one they use."""
    return {
        int.from_bytes(data[tag.at : tag.at + 2], "little" if data[:2] == b"II" else "big")
        for big in _layouts(data)
        for tag in _iterate_tags(data, big)
        if tag.number == _COMPRESSION
    }


def _check_limit(value: int, limit: int, what: str, unit: int = 1) -> None:
    if value > limit:
        _refuse(f"{value / unit:.6g}{' million' if unit > 1 else ''} {what} (limit {limit / unit:.6g})")


def _refuse(what: str) -> NoReturn:
    raise TooCostly(f"too costly to decode: {what}")


_CHECKS: Mapping[str, Callable[[bytes], None]] = {
    "PNG": _check_png,
    "WebP": _check_webp,
    "GIF": _check_gif,
    "PPM": _check_ppm,
    "TIFF": _check_tiff,
}
