"""Files and fields of a multipart body. Nothing is written to disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from clipadapter.serve.limits import RequestRefused, too_many_pictures

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_FIELDS = 20
MAX_FIELD_BYTES = 1000
MAX_HEADERS = 20
MAX_HEADER_BYTES = 8192
PARSED_BYTES = 16 << 10
"""Parsed at a time, in a few milliseconds; other threads run in between."""
CURL_HINT = "send files as curl does with -F images=@photo.jpg"
Content = memoryview | bytearray


class Form:
    r"""A multipart body.

    Args:
        content_type: the request's header.
        body: the whole body; the files are views of it.
        max_files: allowed.

    Attributes:
        files: (name, content) of each part with a file name, in their order.
        fields: values of the other parts by name.

    Raises:
        RequestRefused: if the header names no boundary, the body is no multipart form, or a limit is exceeded.

    >>> body = b'--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n3\r\n--x--\r\n'
    >>> Form("multipart/form-data; boundary=x", body, 1).fields
    {'top': '3'}
    """

    def __init__(self, content_type: str, body: bytes | bytearray, max_files: int) -> None:
        self.files: list[tuple[str, Content]] = []
        self.fields: dict[str, str] = {}
        self._body = memoryview(body)
        self._block, self._block_start = b"", 0
        self._max_files = max_files
        self._part = _Part()
        self._header_name, self._header_value = b"", b""
        self._ended = False
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise RequestRefused(400, f"the Content-Type names no boundary: {CURL_HINT}")
        try:
            parser = MultipartParser(boundary, self._callbacks())
        except FormParserError as error:
            raise RequestRefused(400, f"the boundary in Content-Type can't be used ({error}): {CURL_HINT}") from error
        self._parse(parser)

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def _parse(self, parser: MultipartParser) -> None:
        """Parse the body block by block, so that other threads run in between."""
        for start in range(0, len(self._body), PARSED_BYTES):
            self._block_start, self._block = start, bytes(self._body[start : start + PARSED_BYTES])
            try:
                parser.write(self._block)
            except FormParserError as error:
                raise RequestRefused(400, f"the body is no multipart form ({error}): {CURL_HINT}") from error
        if not self._ended:
            raise RequestRefused(400, f"the multipart form breaks off: {CURL_HINT}")

    def _on_part_begin(self) -> None:
        self._part = _Part()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._check_header_size()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._check_header_size()

    def _check_header_size(self) -> None:
        if (
            len(self._header_name) + len(self._header_value) > MAX_HEADER_BYTES
            or len(self._part.headers) >= MAX_HEADERS
        ):
            raise RequestRefused(400, f"a part of the form has too many or too long headers: {CURL_HINT}")

    def _on_header_end(self) -> None:
        self._part.headers[self._header_name.lower()] = self._header_value
        self._header_name, self._header_value = b"", b""

    def _on_headers_finished(self) -> None:
        part = self._part
        disposition, options = parse_options_header(part.headers.get(b"content-disposition"))
        name = options.get(b"name")
        if disposition != b"form-data" or name is None:
            raise RequestRefused(400, f"a part of the form has no name in its Content-Disposition: {CURL_HINT}")
        part.name = name.decode("utf-8", "replace")
        if b"filename" in options:
            part.file_name = options[b"filename"].decode("utf-8", "replace")
            if len(self.files) >= self._max_files:
                raise too_many_pictures(self._max_files)
        elif len(self.fields) >= MAX_FIELDS:
            raise RequestRefused(400, f"the form has more than {MAX_FIELDS} fields: {CURL_HINT}")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        part.size += end - start
        if part.file_name is None and part.size > MAX_FIELD_BYTES:
            raise RequestRefused(
                413,
                f"the field {part.name[:50]!r} has more than {MAX_FIELD_BYTES} bytes; pictures have a file name: "
                f"{CURL_HINT}",
            )
        # Bytes that only looked like a boundary come from a buffer of the parser, all others from the block. Where the
        # last bytes of a part come from the block, their position gives the start of the part in the body.
        if data is self._block:
            part.start = self._block_start + end - part.size
        elif part.start is None:
            part.copy += data[start:end]

    def _on_part_end(self) -> None:
        part = self._part
        content = part.copy if part.start is None else self._body[part.start : part.start + part.size]
        if part.file_name is not None:
            self.files.append((part.file_name, content))
        elif part.name in self.fields:
            raise RequestRefused(400, f"the field {part.name[:50]!r} occurs twice")
        else:
            self.fields[part.name] = bytes(content).decode("utf-8", "replace")

    def _on_end(self) -> None:
        self._ended = True


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: str = ""
    file_name: str | None = None
    size: int = 0
    start: int | None = None
    """Of its content in the body, once it is known."""
    copy: bytearray = field(default_factory=bytearray)
    """Its content, as long as its start is unknown."""
