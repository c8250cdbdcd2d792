"""What a user should know about a picture that was read: it is the first of several pages, or its end is missing.

All notes follow from the bytes of a file, so that they are the same whether its features come from the store or not.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice

from clipadapter.errors import DataWarning

FIRST_FRAME = "pictures with several pages or frames, of which the first is read"
NO_END_MARKER = "pictures without the end marker of a JPEG, which may have been cut off but lack no pixel"
END_OF_JPEG = b"\xff\xd9"

_START_OF_SCAN = b"\xff\xda"
_SEQUENCE_BRANDS = (b"avis", b"hevc", b"hevx", b"hevm", b"hevs", b"msf1")
"""Brands of AVIF and HEIC files whose pictures are the frames of an animation."""
_MAX_GIF_PARTS = 65_536  # parts of up to 255 bytes after which the search for a second frame of a GIF ends


def find_image_notes(data: bytes) -> list[str]:
    """Find what a user should know about a file that `read_image` reads; usually nothing."""
    if data.startswith(b"\xff\xd8"):
        return [NO_END_MARKER] if lacks_end_marker(data) else []
    return [FIRST_FRAME] if has_more_frames(data) else []


def lacks_end_marker(data: bytes) -> bool:
    """Whether a JPEG has no end marker after its last scan. Pixels may be missing too."""
    # Neither marker can occur within a scan. An embedded thumbnail has both, but it comes before the scans.
    end = data.rfind(END_OF_JPEG)
    return data.find(_START_OF_SCAN, max(end, 0)) >= 0


def has_more_frames(data: bytes) -> bool:
    """Whether a file has more than one page or frame: TIFF, GIF, PNG, WebP, AVIF or HEIC."""
    if data.startswith(b"\x89PNG"):
        at = data.find(b"acTL", 8, max(data.find(b"IDAT"), 0))
        return at > 0 and int.from_bytes(data[at + 4 : at + 8], "big") > 1
    if data.startswith(b"RIFF"):
        first = data.find(b"ANMF")
        return data[12:16] == b"VP8X" and first > 0 and data.find(b"ANMF", first + 4) > 0
    if data.startswith(b"GIF8"):
        frames = (part for part in islice(iterate_gif(data), _MAX_GIF_PARTS) if part == b",")
        return len(list(islice(frames, 2))) == 2
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _has_second_tiff_page(data)
    return data[4:8] == b"ftyp" and data[8:12] in _SEQUENCE_BRANDS


def iterate_gif(data: bytes) -> Iterator[bytes]:
    """The parts of a GIF in order, as Pillow reads them: b"," begins a frame, the others are blocks and stray bytes."""
    at = 13 + _gif_palette_bytes(data, 10)
    while at < len(data) and (kind := data[at : at + 1]) != b";":
        yield kind
        if kind not in b",!":  # some programs write an empty block too many
            at += 1
            continue
        at += 11 + _gif_palette_bytes(data, at + 9) if kind == b"," else 2  # the last byte is the size of codes
        while at < len(data) and data[at]:
            at += 1 + data[at]
            yield b""
        at += 1


def _gif_palette_bytes(data: bytes, flags_at: int) -> int:
    flags = data[flags_at] if flags_at < len(data) else 0
    return 3 << ((flags & 7) + 1) if flags & 128 else 0


def _has_second_tiff_page(data: bytes) -> bool:
    """Whether the first directory of tags names a next one."""
    order = "little" if data[:1] == b"I" else "big"
    is_big = b"+" in data[2:4]
    word, count_bytes, tag_bytes = (8, 8, 20) if is_big else (4, 2, 12)

    def number(at: int, n_bytes: int) -> int:
        return int.from_bytes(data[at : at + n_bytes], order)  # type: ignore[arg-type]

    start = number(8 if is_big else 4, word)
    next_at = start + count_bytes + tag_bytes * number(start, count_bytes)
    return 0 < number(next_at, word) < len(data)


class ImageNotes:
    """The notes on several pictures, collected for one warning per kind of note."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = defaultdict(dict)

    def add(self, name: str, notes: Iterable[str]) -> None:
        """Add the notes on one picture, which may have been added before."""
        for note in notes:
            self._names[note][name] = None

    def warnings(self) -> list[DataWarning]:
        """One warning per kind of note."""
        return [DataWarning(note, tuple(names)) for note, names in self._names.items()]

    def warn(self) -> None:
        """Issue the warnings."""
        for warning in self.warnings():
            warnings.warn(warning)
