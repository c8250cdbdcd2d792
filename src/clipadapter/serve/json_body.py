"""JSON bodies, checked against limits before they are parsed.

A parser makes an object of every value, and holds Python's lock while it does so: a body of many small values would
take hundreds of times its size in memory and stop all other requests. So a body is first scanned for its quotation
marks, which is fast. Long texts and lists of numbers stay where they are in the body. The rest is the outline, of a few
kilobytes, and only that is parsed.
"""

from __future__ import annotations

import base64
import math
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic_core import from_json

from clipadapter.serve.limits import RequestRefused

MAX_OUTLINE_BYTES = 16 << 10
"""Largest size of the JSON without its long texts and lists of numbers. For 64 pictures, one per line, it is about
1 KiB."""
MAX_CONTAINERS = 256
"""Largest number of lists and objects outside of the list of numbers. It limits the depth of nesting too."""
MAX_OTHER_TEXTS = 256
"""Largest number of texts besides the pictures. Keys are texts too."""
MAX_ESCAPED_QUOTES = 1000
"""Largest number of escaped quotation marks: each costs one more step of the search for the end of a text."""
LONG_TEXT_BYTES = 1024
"""Size above which a text is not parsed: a placeholder takes its place in the outline."""
BLOCK_BYTES = 64 << 10
"""Size of a block that is decoded in one step of a few milliseconds. Other threads run between two steps."""
COUNTED_BYTES = 1 << 20
"""Size of a block in which commas are counted in one step."""
MAX_ESCAPE_BYTES = 6
"""The longest escape in JSON is a backslash, u and four digits."""
_BEFORE_LIST = re.compile(rb"\s{0,100}:\s{0,100}(?=\[)")
_WHITE_SPACE = b" \t\r\n"
_DIGITS_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_BRACKETS_AS_SPACE = bytes.maketrans(b"[]", b"  ")


@dataclass(frozen=True)
class Outline:
    """A JSON body without its long parts.

    Args:
        text: the JSON, with a placeholder for each long part: a short text that no client can guess.
        texts: the text of each placeholder, as in the body between its quotation marks.
        numbers: the list of numbers of each placeholder, with its brackets.
    """

    text: bytes
    texts: dict[str, memoryview] = field(default_factory=dict)
    numbers: dict[str, memoryview] = field(default_factory=dict)


def read_outline(
    body: bytes | bytearray, max_pictures: int, numbers_key: bytes | None = None, end: int | None = None
) -> Outline:
    """The outline of a JSON body.

    Args:
        body: of the request; the outline has views of it.
        max_pictures: texts that are allowed besides ``MAX_OTHER_TEXTS``.
        numbers_key: key whose value may be a long list of numbers; None for none.
        end: of the JSON, if other bytes follow it.

    Raises:
        RequestRefused: if there are too many texts, lists or objects, or too many bytes outside of texts and of
            such a list.

    >>> outline = read_outline(b'{"images": ["' + b"A" * 2000 + b'"], "top": 1}', 64)
    >>> [(text in outline.text.decode(), len(raw)) for text, raw in outline.texts.items()]
    [(True, 2000)]
    """
    builder = _OutlineBuilder(body, numbers_key)
    position, end = 0, len(body) if end is None else end
    for count, (start, stop) in enumerate(_find_texts(body, end), 1):
        if count > max_pictures + MAX_OTHER_TEXTS:
            raise RequestRefused(
                413,
                f"the JSON has more than {max_pictures + MAX_OTHER_TEXTS} texts, keys included: send "
                f"{max_pictures} pictures at most at a time, and nothing but the fields of this address",
            )
        builder.add_gap(position, start)
        builder.add_text(start, stop)
        position = stop
    builder.add_gap(position, end)
    return builder.outline()


class _OutlineBuilder:
    """Collects the outline of a body."""

    def __init__(self, body: bytes | bytearray, numbers_key: bytes | None) -> None:
        self._body, self._view = body, memoryview(body)
        self._numbers_key = None if numbers_key is None else b'"' + numbers_key + b'"'
        self._parts: list[bytes] = []
        self._texts: dict[str, memoryview] = {}
        self._numbers: dict[str, memoryview] = {}
        self._secret = secrets.token_hex(8)
        self._byte_count = self._container_count = 0

    def add_text(self, start: int, stop: int) -> None:
        """Add a text, given with its quotation marks."""
        if stop - start <= LONG_TEXT_BYTES:
            self._parts.append(bytes(self._view[start:stop]))
        else:
            self._parts.append(self._add_placeholder("text", self._texts, self._view[start + 1 : stop - 1]))

    def add_gap(self, start: int, stop: int) -> None:
        """Add what is between two texts."""
        if self._parts and self._parts[-1] == self._numbers_key:
            colon = _BEFORE_LIST.match(self._body, start, min(start + LONG_TEXT_BYTES, stop))
            end = self._end_of_numbers(colon.end(), stop) if colon else 0
            if colon and end:
                self._add_bounded(start, colon.end())
                self._parts.append(self._add_placeholder("list", self._numbers, self._view[colon.end() : end]))
                start = end
        self._add_bounded(start, stop)

    def outline(self) -> Outline:
        """The outline of what was added."""
        return Outline(b"".join(self._parts), self._texts, self._numbers)

    def _end_of_numbers(self, start: int, stop: int) -> int:
        """The end of a list without texts or objects; 0 if there is none."""
        brace = self._body.find(b"}", start, stop)
        return self._body.rfind(b"]", start, stop if brace < 0 else brace) + 1

    def _add_bounded(self, start: int, stop: int) -> None:
        self._byte_count += stop - start
        if self._byte_count > MAX_OUTLINE_BYTES:
            raise RequestRefused(
                400,
                f"the JSON has more than {MAX_OUTLINE_BYTES} bytes outside of its texts: send only the fields of this "
                "address, pictures as texts in base64, pixels as bytes or as a list of numbers",
            )
        gap = bytes(self._view[start:stop])
        self._container_count += gap.count(b"[") + gap.count(b"{")
        if self._container_count > MAX_CONTAINERS:
            raise RequestRefused(
                400,
                f"the JSON has more than {MAX_CONTAINERS} lists and objects: send only the fields of this address",
            )
        self._parts.append(gap)

    def _add_placeholder(self, kind: str, parts: dict[str, memoryview], raw: memoryview) -> bytes:
        name = f"({kind} of {len(raw)} bytes) {self._secret}-{len(parts)}"
        parts[name] = raw
        return b'"' + name.encode() + b'"'


def _find_texts(body: bytes | bytearray, end: int) -> Iterator[tuple[int, int]]:
    """Start and end of each text, with its quotation marks; the parser reports a text without an end."""
    escaped, start = 0, body.find(b'"', 0, end)
    while start >= 0:
        stop = body.find(b'"', start + 1, end)
        while stop >= 0 and _is_escaped(body, start + 1, stop):
            escaped += 1
            if escaped > MAX_ESCAPED_QUOTES:
                raise RequestRefused(400, f"the JSON has more than {MAX_ESCAPED_QUOTES} quotation marks within texts")
            stop = body.find(b'"', stop + 1, end)
        if stop < 0:
            return
        yield start, stop + 1
        start = body.find(b'"', stop + 1, end)


def _is_escaped(body: bytes | bytearray, start: int, stop: int) -> bool:
    """Whether an odd number of backslashes stands before a quotation mark."""
    first = stop
    while first > start:
        block = bytes(body[max(start, first - BLOCK_BYTES) : first])
        other_bytes = len(block.rstrip(b"\\"))
        first -= len(block) - other_bytes
        if other_bytes:
            break
    return (stop - first) % 2 == 1


def decode_base64(text: str | memoryview) -> bytes:
    r"""Decode base64 block by block, so that other threads run in between.

    Args:
        text: in base64; with the escapes of JSON if it is one of ``Outline.texts``.

    Raises:
        ValueError: if it is not base64.

    >>> decode_base64("AAEC"), decode_base64(memoryview(b"AA\\/C"))
    (b'\x00\x01\x02', b'\x00\x0f\xc2')
    """
    decoded, pending = [], b""
    for block in [text.encode("ascii")] if isinstance(text, str) else _unescape_blocks(text):
        pending += block
        size = max(0, len(pending) - 1) // 4 * 4  # only the last four characters may end in padding: they stay pending
        if b"=" in pending[:size]:
            raise ValueError("padding within base64")
        decoded.append(base64.b64decode(pending[:size], validate=True))
        pending = pending[size:]
    decoded.append(base64.b64decode(pending, validate=True))
    return b"".join(decoded)


def _unescape_blocks(text: memoryview) -> Iterator[bytes]:
    """Blocks of a text in JSON, without its escapes; none is longer than ``BLOCK_BYTES``."""
    start = 0
    while start < len(text):
        block = bytes(text[start : start + BLOCK_BYTES])
        if start + len(block) < len(text):  # end the block before an escape that it would cut in two
            cut = block.rfind(b"\\", len(block) - MAX_ESCAPE_BYTES)
            block = block if cut < 0 else block[:cut]
        start += len(block)
        yield (from_json(b'"' + block + b'"').encode("ascii") if b"\\" in block else block)


def read_numbers(text: memoryview, shape: Sequence[int]) -> bytearray:
    r"""Whole numbers from 0 to 255 of a JSON list, flat or nested as its shape says.

    The numbers are parsed block by block, without their brackets: a list of small lists would take eleven times its
    text as Python objects. So the brackets are compared with those of a list of this shape.

    Args:
        text: the list, with its brackets.
        shape: of the tensor, each length one or more.

    Raises:
        ValueError: if it is something else; the message says what is wrong.

    >>> read_numbers(memoryview(b"[[1, 2], [3, 4]]"), (2, 2))
    bytearray(b'\x01\x02\x03\x04')
    """
    count = math.prod(shape)
    starts = range(0, len(text), COUNTED_BYTES)
    commas = sum(bytes(text[start : start + COUNTED_BYTES]).count(b",") for start in starts)
    if commas + 1 != count:
        raise ValueError(f"are {commas + 1} values, but the shape {list(shape)} has {count}")
    is_nested = bytes(text[1:BLOCK_BYTES]).lstrip(_WHITE_SPACE).startswith(b"[")
    expected = _punctuation_of(shape if is_nested else [count], len(text) - count)
    expected += b","
    values, position = bytearray(), 0
    for block in _split_at_commas(text):
        marks = block.translate(_DIGITS_AS_ZERO, _WHITE_SPACE)
        punctuation = marks.translate(None, b"0") + b","
        if not expected.startswith(punctuation, position) or b"0[" in marks or b"]0" in marks:
            raise ValueError(f"are not whole numbers from 0 to 255, flat or nested as the shape {list(shape)} says")
        position += len(punctuation)
        try:
            values += bytes(from_json(b"[" + block.translate(_BRACKETS_AS_SPACE) + b"]"))
        except (ValueError, OverflowError) as error:
            raise ValueError("must be whole numbers from 0 to 255") from error
    if position != len(expected):
        raise ValueError(f"are not nested as the shape {list(shape)} says")
    return values


def _punctuation_of(shape: Sequence[int], max_bytes: int) -> bytearray:
    """A nested list of a shape without its numbers: brackets and commas.

    Raises:
        ValueError: if it is longer than `max_bytes`.
    """
    text = bytearray()
    for width in reversed(shape):
        if (len(text) + 1) * width + 1 > max_bytes:
            raise ValueError(f"are not nested as the shape {list(shape)} says")
        text += b","
        text *= width
        text[-1:] = b"]"
        text[:0] = b"["
    return text


def _split_at_commas(text: memoryview) -> Iterator[bytes]:
    """Blocks that end before a comma; the comma is in none."""
    start = 0
    while start < len(text):
        block = bytes(text[start : start + BLOCK_BYTES])
        if start + len(block) < len(text):
            cut = block.rfind(b",")
            if cut < 0:
                raise ValueError("must be whole numbers from 0 to 255")
            block = block[:cut]
        start += len(block) + 1
        yield block
