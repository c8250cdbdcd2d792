"""Files and fields of a multipart body, taken apart while it comes in; nothing is written to disk."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from clipadapter.serve.limits import Refused

MAX_FIELDS = 20
MAX_FIELD_BYTES = 1000
MAX_HEADERS = 20
MAX_HEADER_BYTES = 8192
HOW = "send files as curl does with -F images=@photo.jpg"


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    file: str | None = None
    pieces: list[bytes] = field(default_factory=list)
    size: int = 0


class Form:
    r"""A multipart body.

    Args:
        content_type: the request's header.
        max_files: that may come.

    Attributes:
        files: (name, bytes) of each part that has a file name, in their order.
        fields: value by name of the others.

    Raises:
        Refused: if the header names no boundary.

    >>> form = Form("multipart/form-data; boundary=x", 1)
    >>> form.feed(b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n3\r\n--x--\r\n')
    >>> form.close(), form.fields
    (None, {'top': '3'})
    """

    def __init__(self, content_type: str, max_files: int) -> None:
        self.files: list[tuple[str, bytes]] = []
        self.fields: dict[str, str] = {}
        self._max_files = max_files
        self._part = _Part()
        self._header, self._value = b"", b""
        self._ended = False
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise Refused(400, f"the Content-Type names no boundary: {HOW}")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._field,
                    "on_header_value": self._said,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_end": self._all,
                },
            )
        except FormParserError as error:
            raise Refused(400, f"the boundary in Content-Type can't be used ({error}): {HOW}") from error

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body.

        Raises:
            Refused: if they are no multipart body, or too much.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Refused(400, f"the body is no multipart form ({error}): {HOW}") from error

    def close(self) -> None:
        """The body ended.

        Raises:
            Refused: if it should not have.
        """
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
        part.pieces.append(data[start:end])

    def _end(self) -> None:
        part, value = self._part, b"".join(self._part.pieces)
        if part.file is not None:
            self.files.append((part.file, value))
        elif part.name in self.fields:
            raise Refused(400, f"the field {part.name[:50]!r} is there twice")
        else:
            self.fields[part.name] = value.decode("utf-8", "replace")

    def _all(self) -> None:
        self._ended = True


def too_many(limit: int, came: int | None = None) -> Refused:
    """What to raise for a request with more pictures than are taken."""
    came_words = "" if came is None else f" {came} came:"
    return Refused(413, f"a request may bring {limit} pictures at most;{came_words} send them in several requests")
