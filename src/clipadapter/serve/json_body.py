"""JSON bodies, checked against limits before they are parsed.

A parser makes an object of every value, and holds Python's lock while it does so: a body of many small values would
take hundreds of times its size in memory and stop all other requests. So a body is first scanned for its quotation
marks, which is fast. Long texts stay where they are in the body. The rest is the outline, of a few kilobytes, and only
that is parsed.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydantic_core import from_json

from clipadapter.serve.limits import RequestRefused

MAX_OUTLINE_BYTES = 16 << 10
"""Largest size of the JSON without its long texts. For 64 pictures, one per line, it is about 1 KiB."""
MAX_CONTAINERS = 256
"""Largest number of lists and objects. It limits the depth of nesting too."""
MAX_OTHER_TEXTS = 256
"""Largest number of texts besides the pictures. Keys are texts too."""
MAX_ESCAPED_QUOTES = 1000
"""Largest number of escaped quotation marks: each costs one more step of the search for the end of a text."""
LONG_TEXT_BYTES = 1024
"""Size above which a text is not parsed: a placeholder takes its place in the outline."""
BLOCK_BYTES = 64 << 10
"""Size of a block that is decoded in one step of a few milliseconds. Other threads run between two steps."""
MAX_ESCAPE_BYTES = 6
"""The longest escape in JSON is a backslash, u and four digits."""


@dataclass(frozen=True)
class Outline:
    """A JSON body without its long texts.

    Args:
        text: the JSON, with a placeholder for each long text: a short one that no client can guess.
        texts: the text of each placeholder, as in the body between its quotation marks.
    """

    text: bytes
    texts: dict[str, memoryview] = field(default_factory=dict)


def read_outline(body: bytes | bytearray, max_pictures: int) -> Outline:
    """The outline of a JSON body.

    Args:
        body: of the request; the outline has views of it.
        max_pictures: texts that are allowed besides ``MAX_OTHER_TEXTS``.

    Raises:
        RequestRefused: if there are too many texts, lists or objects, or too many bytes outside of texts.

    >>> outline = read_outline(b'{"images": ["' + b"A" * 2000 + b'"], "top": 1}', 64)
    >>> [(text in outline.text.decode(), len(raw)) for text, raw in outline.texts.items()]
    [(True, 2000)]
    """
    builder = _OutlineBuilder(body)
    position = 0
    for count, (start, stop) in enumerate(_find_texts(body), 1):
        if count > max_pictures + MAX_OTHER_TEXTS:
            raise RequestRefused(
                413,
                f"the JSON has more than {max_pictures + MAX_OTHER_TEXTS} texts, keys included: send "
                f"{max_pictures} pictures at most at a time, and nothing but the fields of this address",
            )
        builder.add_gap(position, start)
        builder.add_text(start, stop)
        position = stop
    builder.add_gap(position, len(body))
    return builder.outline()


class _OutlineBuilder:
    """Collects the outline of a body."""

    def __init__(self, body: bytes | bytearray) -> None:
        self._view = memoryview(body)
        self._parts: list[bytes] = []
        self._texts: dict[str, memoryview] = {}
        self._secret = secrets.token_hex(8)
        self._byte_count = self._container_count = 0

    def add_text(self, start: int, stop: int) -> None:
        """Add a text, given with its quotation marks."""
        if stop - start <= LONG_TEXT_BYTES:
            self._parts.append(bytes(self._view[start:stop]))
        else:
            raw = self._view[start + 1 : stop - 1]
            name = f"(text of {len(raw)} bytes) {self._secret}-{len(self._texts)}"
            self._texts[name] = raw
            self._parts.append(b'"' + name.encode() + b'"')

    def outline(self) -> Outline:
        """The outline of what was added."""
        return Outline(b"".join(self._parts), self._texts)

    def add_gap(self, start: int, stop: int) -> None:
        """Add what is between two texts."""
        self._byte_count += stop - start
        if self._byte_count > MAX_OUTLINE_BYTES:
            raise RequestRefused(
                400,
                f"the JSON has more than {MAX_OUTLINE_BYTES} bytes outside of its texts: send only the fields of this "
                "address, and pictures as texts in base64",
            )
        gap = bytes(self._view[start:stop])
        self._container_count += gap.count(b"[") + gap.count(b"{")
        if self._container_count > MAX_CONTAINERS:
            raise RequestRefused(
                400,
                f"the JSON has more than {MAX_CONTAINERS} lists and objects: send only the fields of this address",
            )
        self._parts.append(gap)


def _find_texts(body: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Start and end of each text, with its quotation marks; the parser reports a text without an end."""
    escaped, start = 0, body.find(b'"')
    while start >= 0:
        stop = body.find(b'"', start + 1)
        while stop >= 0 and _is_escaped(body, start + 1, stop):
            escaped += 1
            if escaped > MAX_ESCAPED_QUOTES:
                raise RequestRefused(400, f"the JSON has more than {MAX_ESCAPED_QUOTES} quotation marks within texts")
            stop = body.find(b'"', stop + 1)
        if stop < 0:
            return
        yield start, stop + 1
        start = body.find(b'"', stop + 1)


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
