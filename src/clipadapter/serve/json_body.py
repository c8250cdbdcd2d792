"""JSON bodies, bounded before they are parsed.

A parser makes an object of every value, and holds Python's lock while it does: a body of many small values would take
hundreds of times its size and stop all other requests. So a body is first gone through by its quotation marks, which
costs next to nothing. Long texts and lists of numbers stay where they are in the body. What is left is the outline of a
few kilobytes, and that is parsed.
"""

from __future__ import annotations

import base64
import math
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pydantic_core import from_json

from clipadapter.serve.limits import Refused

MAX_OUTLINE_BYTES = 16 << 10
"""Of JSON outside of texts and of the list of numbers; 64 pictures, a line each, take about 1 KiB."""
MAX_LISTS = 256
"""Lists and objects outside of the list of numbers, and so the deepest nesting."""
MAX_TEXTS = 256
"""Texts beside the pictures; keys are texts too."""
MAX_ESCAPED_QUOTES = 1000
LONG_TEXT_BYTES = 1024
PIECE_BYTES = 64 << 10
"""What is done at a time without giving other threads their turn; a few milliseconds."""
COUNT_BYTES = 1 << 20
ESCAPE_BYTES = 6
"""Of the longest escape in JSON, as in backslash, u, 0041."""
_NUMBERS = re.compile(rb"\s{0,100}:\s{0,100}(?=\[)")
_SPACES = b" \t\r\n"
_DIGITS_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_BRACKETS_AS_SPACE = bytes.maketrans(b"[]", b"  ")


@dataclass(frozen=True)
class Outline:
    """A JSON body without its long parts.

    Args:
        text: the JSON; in the place of each long part stands a short text that no client can guess.
        texts: what stands in the body for such a short text, as it is between its quotation marks.
        numbers: the same for lists that may be of numbers, with their brackets.
    """

    text: bytes
    texts: dict[str, memoryview] = field(default_factory=dict)
    numbers: dict[str, memoryview] = field(default_factory=dict)


def read_outline(
    body: bytes | bytearray, max_pictures: int, numbers_at: bytes | None = None, end: int | None = None
) -> Outline:
    """Take the long parts out of a JSON body.

    Args:
        body: of the request; the outline looks into it.
        max_pictures: texts that may come beside ``MAX_TEXTS``.
        numbers_at: key whose value may be a long list of numbers; None for none.
        end: of the JSON, if something else follows it.

    Raises:
        Refused: if there are too many texts, lists or objects, or too much that is neither a text nor such a list.

    >>> outline = read_outline(b'{"images": ["' + b"A" * 2000 + b'"], "top": 1}', 64)
    >>> [(text in outline.text.decode(), len(raw)) for text, raw in outline.texts.items()]
    [(True, 2000)]
    """
    outline = _Outline(body, numbers_at)
    position, end = 0, len(body) if end is None else end
    for count, (start, stop) in enumerate(_texts(body, end), 1):
        if count > max_pictures + MAX_TEXTS:
            raise Refused(
                413,
                f"the JSON has more than {max_pictures + MAX_TEXTS} texts, keys included: send "
                f"{max_pictures} pictures at most at a time, and nothing but what the address takes",
            )
        outline.add_gap(position, start)
        outline.add_text(start, stop)
        position = stop
    outline.add_gap(position, end)
    return outline.result()


class _Outline:
    """Collects the outline of a body."""

    def __init__(self, body: bytes | bytearray, numbers_at: bytes | None) -> None:
        self._body, self._view = body, memoryview(body)
        self._numbers_at = None if numbers_at is None else b'"' + numbers_at + b'"'
        self._parts: list[bytes] = []
        self._texts: dict[str, memoryview] = {}
        self._numbers: dict[str, memoryview] = {}
        self._token = secrets.token_hex(8)
        self._bytes = self._lists = 0

    def add_text(self, start: int, stop: int) -> None:
        """A text with its quotation marks."""
        if stop - start <= LONG_TEXT_BYTES:
            self._parts.append(bytes(self._view[start:stop]))
        else:
            self._parts.append(self._name("text", self._texts, self._view[start + 1 : stop - 1]))

    def add_gap(self, start: int, stop: int) -> None:
        """What stands between two texts."""
        if self._parts and self._parts[-1] == self._numbers_at:
            head = _NUMBERS.match(self._body, start, min(start + LONG_TEXT_BYTES, stop))
            end = self._end_of_numbers(head.end(), stop) if head else 0
            if head and end:
                self._add_outside(start, head.end())
                self._parts.append(self._name("list", self._numbers, self._view[head.end() : end]))
                start = end
        self._add_outside(start, stop)

    def result(self) -> Outline:
        """The outline of all that was added."""
        return Outline(b"".join(self._parts), self._texts, self._numbers)

    def _end_of_numbers(self, start: int, stop: int) -> int:
        """Behind a list that holds neither texts nor objects; 0 if there is none."""
        brace = self._body.find(b"}", start, stop)
        return self._body.rfind(b"]", start, stop if brace < 0 else brace) + 1

    def _add_outside(self, start: int, stop: int) -> None:
        self._bytes += stop - start
        if self._bytes > MAX_OUTLINE_BYTES:
            raise Refused(
                400,
                f"the JSON has more than {MAX_OUTLINE_BYTES} bytes outside of its texts: send nothing but what the "
                "address takes, pictures as texts in base64, pixels as bytes or as a list of numbers",
            )
        gap = bytes(self._view[start:stop])
        self._lists += gap.count(b"[") + gap.count(b"{")
        if self._lists > MAX_LISTS:
            raise Refused(
                400,
                f"the JSON has more than {MAX_LISTS} lists and objects: send nothing but what the address takes",
            )
        self._parts.append(gap)

    def _name(self, kind: str, parts: dict[str, memoryview], raw: memoryview) -> bytes:
        name = f"({kind} of {len(raw)} bytes) {self._token}-{len(parts)}"
        parts[name] = raw
        return b'"' + name.encode() + b'"'


def _texts(body: bytes | bytearray, end: int) -> Iterator[tuple[int, int]]:
    """Start and end of each text, with its quotation marks; one that does not end is left to the parser."""
    escaped, start = 0, body.find(b'"', 0, end)
    while start >= 0:
        stop = body.find(b'"', start + 1, end)
        while stop >= 0 and _is_escaped(body, start + 1, stop):
            escaped += 1
            if escaped > MAX_ESCAPED_QUOTES:
                raise Refused(400, f"the JSON has more than {MAX_ESCAPED_QUOTES} quotation marks within texts")
            stop = body.find(b'"', stop + 1, end)
        if stop < 0:
            return
        yield start, stop + 1
        start = body.find(b'"', stop + 1, end)


def _is_escaped(body: bytes | bytearray, start: int, stop: int) -> bool:
    """Whether an odd number of backslashes stands before a quotation mark."""
    low = stop
    while low > start:
        piece = bytes(body[max(start, low - PIECE_BYTES) : low])
        rest = len(piece.rstrip(b"\\"))
        low -= len(piece) - rest
        if rest:
            break
    return (stop - low) % 2 == 1


def decode_base64(text: str | memoryview) -> bytes:
    r"""The bytes that a text stands for, piece by piece, so that other threads have their turn.

    Args:
        text: in base64; as it stands in the body, escapes and all, if it comes from ``Outline.texts``.

    Raises:
        ValueError: if it is no base64.

    >>> decode_base64("AAEC"), decode_base64(memoryview(b"AA\\/C"))
    (b'\x00\x01\x02', b'\x00\x0f\xc2')
    """
    pieces, rest = [], b""
    for piece in [text.encode("ascii")] if isinstance(text, str) else _unescaped(text):
        rest += piece
        whole = max(0, len(rest) - 1) // 4 * 4  # the last four characters may end in padding, none before
        if b"=" in rest[:whole]:
            raise ValueError("padding within base64")
        pieces.append(base64.b64decode(rest[:whole], validate=True))
        rest = rest[whole:]
    pieces.append(base64.b64decode(rest, validate=True))
    return b"".join(pieces)


def _unescaped(text: memoryview) -> Iterator[bytes]:
    """Pieces of a text in JSON, without its escapes; none is longer than ``PIECE_BYTES``."""
    start = 0
    while start < len(text):
        piece = bytes(text[start : start + PIECE_BYTES])
        if start + len(piece) < len(text):  # an escape is not to be cut in two
            cut = piece.rfind(b"\\", len(piece) - ESCAPE_BYTES)
            piece = piece if cut < 0 else piece[:cut]
        start += len(piece)
        yield (from_json(b'"' + piece + b'"').encode("ascii") if b"\\" in piece else piece)


def read_numbers(text: memoryview, shape: Sequence[int]) -> bytearray:
    r"""Whole numbers from 0 to 255 of a JSON list, flat or nested as its shape says.

    Args:
        text: the list, with its brackets.
        shape: of the tensor, each length one or more.

    Raises:
        ValueError: if it is something else, with what is wrong.

    >>> read_numbers(memoryview(b"[[1, 2], [3, 4]]"), (2, 2))
    bytearray(b'\x01\x02\x03\x04')
    """
    count = math.prod(shape)
    commas = sum(bytes(text[at : at + COUNT_BYTES]).count(b",") for at in range(0, len(text), COUNT_BYTES))
    if commas + 1 != count:
        raise ValueError(f"are {commas + 1} values, but the shape {list(shape)} has {count}")
    nested = bytes(text[1:PIECE_BYTES]).lstrip(_SPACES).startswith(b"[")
    brackets = _brackets(shape if nested else [count], len(text) - count)
    brackets += b","
    values, place = bytearray(), 0
    for piece in _between_commas(text):
        marks = piece.translate(_DIGITS_AS_ZERO, _SPACES)
        seen = marks.translate(None, b"0") + b","
        if not brackets.startswith(seen, place) or b"0[" in marks or b"]0" in marks:
            raise ValueError(f"are not whole numbers from 0 to 255, flat or nested as the shape {list(shape)} says")
        place += len(seen)
        try:
            values += bytes(from_json(b"[" + piece.translate(_BRACKETS_AS_SPACE) + b"]"))
        except (ValueError, OverflowError) as error:
            raise ValueError("must be whole numbers from 0 to 255") from error
    if place != len(brackets):
        raise ValueError(f"are not nested as the shape {list(shape)} says")
    return values


def _brackets(shape: Sequence[int], most: int) -> bytearray:
    """A nested list of a shape without its numbers.

    Raises:
        ValueError: if it is longer than what can be there.
    """
    text = bytearray()
    for width in reversed(shape):
        if (len(text) + 1) * width + 1 > most:
            raise ValueError(f"are not nested as the shape {list(shape)} says")
        text += b","
        text *= width
        text[-1:] = b"]"
        text[:0] = b"["
    return text


def _between_commas(text: memoryview) -> Iterator[bytes]:
    """Pieces that end before a comma, which they leave out."""
    start = 0
    while start < len(text):
        piece = bytes(text[start : start + PIECE_BYTES])
        if start + len(piece) < len(text):
            cut = piece.rfind(b",")
            if cut < 0:
                raise ValueError("must be whole numbers from 0 to 255")
            piece = piece[:cut]
        start += len(piece) + 1
        yield piece
