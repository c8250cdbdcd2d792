"""Files and fields of a multipart body; nothing is written to disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from clipadapter.serve.limits import Refused

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELDS = 20
MAX_FIELD_BYTES = 1000
MAX_HEADERS = 20
MAX_HEADER_BYTES = 8192
PIECE_BYTES = 16 << 10
"""Taken apart at a time; a few milliseconds."""
HOW = "send files as curl does with -F images=@photo.jpg"


Content = memoryview | bytearray


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    file: str | None = None
    size: int = 0
    start: int | None = None
    """Of its content in the body, once it is known."""
    copied: bytearray = field(default_factory=bytearray)
    """Its content until then."""


class Form:
    r"""A multipart body.

    Args:
        content_type: the request's header.
        body: all of it; the files look into it.
        max_files: that may come.

    Attributes:
        files: (name, content) of each part that has a file name, in their order.
        fields: value by name of the others.

    Raises:
        Refused: if the header names no boundary, the body is no multipart form, or there is too much in it.

    >>> body = b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n3\r\n--x--\r\n'
    >>> Form("multipart/form-data; boundary=x", body, 1).fields
    {'top': '3'}
    """

    def __init__(self, content_type: str, body: bytes | bytearray, max_files: int) -> None:
        self.files: list[tuple[str, Content]] = []
        self.fields: dict[str, str] = {}
        self._body = memoryview(body)
        self._piece, self._offset = b"", 0
        self._max_files = max_files
        self._part = _Part()
        self._header, self._value = b"", b""
        self._ended = False
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise Refused(400, f"the Content-Type names no boundary: {HOW}")
        try:
            parser = MultipartParser(boundary, self._callbacks())
        except FormParserError as error:
            raise Refused(400, f"the boundary in Content-Type can't be used ({error}): {HOW}") from error
        self._parse(parser)

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._said,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._all,
        }

    def _parse(self, parser: MultipartParser) -> None:
        """Take the body apart, piece by piece, so that other threads have their turn."""
        for start in range(0, len(self._body), PIECE_BYTES):
            self._offset, self._piece = start, bytes(self._body[start : start + PIECE_BYTES])
            try:
                parser.write(self._piece)
            except FormParserError as error:
                raise Refused(400, f"the body is no multipart form ({error}): {HOW}") from error
        if not self._ended:
            raise Refused(400, f"the multipart form breaks off: {HOW}")

    def _begin(self) -> None:
        self._part = _Part()

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check_header()

    def _said(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header) + len(self._value) > MAX_HEADER_BYTES or len(self._part.headers) >= MAX_HEADERS:
            raise Refused(400, f"a part of the form has too many or too long headers: {HOW}")

    def _header_end(self) -> None:
        self._part.headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _headers_end(self) -> None:
        part = self._part
        kind, options = parse_options_header(part.headers.get(b"content-disposition"))
        name = options.get(b"name")
        if kind != b"form-data" or name is None:
            raise Refused(400, f"a part of the form has no name in its Content-Disposition: {HOW}")
        part.name = name.decode("utf-8", "replace")
        if b"filename" in options:
            part.file = options[b"filename"].decode("utf-8", "replace")
            if len(self.files) >= self._max_files:
                raise too_many(self._max_files)
        elif len(self.fields) >= MAX_FIELDS:
            raise Refused(400, f"the form has more than {MAX_FIELDS} fields: {HOW}")

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        part.size += end - start
        if part.file is None and part.size > MAX_FIELD_BYTES:
            raise Refused(
                413,
                f"the field {part.name[:50]!r} has more than {MAX_FIELD_BYTES} bytes; pictures have a file name: {HOW}",
            )
        # What looked like a boundary and was none comes from a buffer of the parser, all else from the piece.
        if data is self._piece:
            part.start = self._offset + end - part.size
        elif part.start is None:
            part.copied += data[start:end]

    def _end(self) -> None:
        part = self._part
        content = part.copied if part.start is None else self._body[part.start : part.start + part.size]
        if part.file is not None:
            self.files.append((part.file, content))
        elif part.name in self.fields:
            raise Refused(400, f"the field {part.name[:50]!r} is there twice")
        else:
            self.fields[part.name] = bytes(content).decode("utf-8", "replace")

    def _all(self) -> None:
        self._ended = True


def too_many(limit: int, came: int | None = None) -> Refused:
    """What to raise for a request with more pictures than are taken."""
    came_words = "" if came is None else f" {came} came:"
    return Refused(413, f"a request may bring {limit} pictures at most;{came_words} send them in several requests")
