"""Parsers of JSON, JSON lines and TOML that raise DataError, with the place, for everything that is wrong.

Python's parsers raise various errors for deep nesting and for numbers of thousands of digits. Lone surrogates they
accept, and errors follow later, when the text is printed or saved. Here all of these raise DataError.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from clipadapter.errors import DataError
from clipadapter.utils.files import explain_missing, open_regular, printable

MAX_FILE_BYTES = 256 << 20  # largest file that is read
MAX_LINE_CHARACTERS = 1 << 20  # longest line of a table or of JSON lines
MAX_DEPTH = 100  # largest nesting depth of lists and objects
_TOML_TEXT = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"""|\Z)|' + r"'''.*?(?:'''|\Z)|" + r'"(?:[^"\\\n]|\\.)*"?|' + r"'[^'\n]*'?|#[^\n]*",
    re.DOTALL,
)
"""A text or a comment of TOML."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # a lone surrogate as an escape of JSON


def read_text(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """Read the text of a UTF-8 file, with or without a byte order mark; a larger file is refused."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > max_bytes else file.read(max_bytes + 1)  # the file may grow in the meantime
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        hint = explain_missing(Path(path)) if isinstance(error, FileNotFoundError) else ""
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{printable(path)} can't be opened: {reason}{hint}") from error
    if size > max_bytes:
        raise DataError(f"{printable(path)} has {size >> 20} MiB, but at most {max_bytes >> 20} MiB are read")
    if len(data) > max_bytes:
        raise DataError(f"{printable(path)} has more than {max_bytes >> 20} MiB, the largest size that is read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)}: the text is not UTF-8 (byte {error.start})") from error


def read_json(path: str | Path, expected: str = "") -> Any:
    """Parse a JSON file."""
    return parse_json(read_text(path), printable(path), expected)


def parse_json(text: str, where: str, expected: str = "", surrogates: bool = False, line: int = 0) -> Any:
    """Parse a JSON text, whose place and expected content messages name.

    Lone surrogates are accepted for file names, which contain them if their bytes are not UTF-8.
    """
    advice = f"; {expected}" if expected else ""
    location = f"{where}, line {line}" if line else where
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        position = f"line {line or error.lineno}, character {error.colno}"
        raise DataError(f"{where}, {position}: not JSON ({error.msg}){advice}") from error
    except RecursionError as error:
        raise _nesting_error(location) from error
    except ValueError as error:
        raise DataError(f"{location}: {_reason(error)}{advice}") from error
    _check_depth(value, location)
    if not surrogates and _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            near = printable(error.object[max(error.start - 20, 0) : error.end + 20])
            raise DataError(
                f"{location}: '{near}' has a lone surrogate (half of a character): write the whole character"
            ) from error
    return value


def read_lines(file: TextIO, where: str) -> Iterator[str]:
    """The lines of a file. A line is in memory at once, and its values take many times as much."""
    while line := file.readline(MAX_LINE_CHARACTERS + 1):
        if len(line) > MAX_LINE_CHARACTERS:
            raise DataError(f"{where}: a line has more than {MAX_LINE_CHARACTERS:,} characters, the most that are read")
        yield line


def parse_json_lines(lines: Iterator[str], where: str, surrogates: bool = False) -> Iterator[tuple[int, Any]]:
    r"""Parse JSON lines: the values with their line numbers from 1. Empty lines are skipped.

    >>> list(parse_json_lines(iter(['{"path": "1.jpg"}\n', "\n", "[]"]), "pictures.jsonl"))
    [(1, {'path': '1.jpg'}), (3, [])]
    """
    for number, text in enumerate(lines, 1):
        if text.strip():
            yield number, parse_json(text, where, surrogates=surrogates, line=number)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Parse a TOML text."""
    # Imported late: Python 3.10 has no TOML parser, and prediction with an exported file needs none.
    # The parser's memory grows with the square of the number of parts of a key: 6 GB for 100,000.
    if any(part.count(".") >= MAX_DEPTH for part in re.split(r"[,=\[\]{}\n]", _TOML_TEXT.sub("", text))):
        raise _nesting_error(where)
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where} is not TOML: {error}") from error
    except RecursionError as error:
        raise _nesting_error(where) from error
    except ValueError as error:
        raise DataError(f"{where}: {_reason(error)}") from error
    _check_depth(value, where)
    return value


def _check_depth(value: Any, where: str) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        if not inner:
            return
        level = [value for values in inner for value in values]
    raise _nesting_error(where)


def _nesting_error(where: str) -> DataError:
    return DataError(f"{where}: lists and objects are nested more than {MAX_DEPTH} deep")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _reason(error: ValueError) -> str:
    """The reason of a ValueError. Python's message about numbers with too many digits is not clear to users."""
    return "a number has thousands of digits" if "integer string conversion" in str(error) else str(error)
