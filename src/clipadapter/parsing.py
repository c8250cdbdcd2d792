"""JSON, JSON lines and TOML that people write: read whole, with an error of this package for whatever is wrong.

Python's readers raise several kinds of errors for nesting that is too deep, numbers of thousands of digits, and halves
of letters (lone surrogates), or hand these on to break later, where they are printed or saved. Here they are a
`DataError` that says where.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from clipadapter.errors import DataError
from clipadapter.files import open_regular, printable

MAX_FILE_BYTES = 256 << 20
"""A larger file is none that a person wrote."""
MAX_DEPTH = 100
"""Lists and objects within one another."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""How half of a letter may be written in JSON."""


def read_text(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Args:
        path: the file.
        max_bytes: of a larger one no more than this is read.

    Raises:
        DataError: if it can't be read, is too large, or no UTF-8.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise DataError(f"{printable(path)} has {size >> 20} MiB, but no more than {max_bytes >> 20} are read")
            data = file.read(max_bytes + 1)  # it may grow meanwhile
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: no file has such a name
        raise DataError(f"{printable(path)} can't be opened: {getattr(error, 'strerror', None) or error}") from error
    if len(data) > max_bytes:
        raise DataError(f"{printable(path)} has more than {max_bytes >> 20} MiB, and no more are read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(path)}: the text is not UTF-8 (byte {error.start})") from error


def read_json(path: str | Path, expected: str = "") -> Any:
    """What a JSON file holds.

    Args:
        path: the file, of UTF-8.
        expected: what it should be, for the message, such as ``expected {"cup": "coffee cup"}``.

    Raises:
        DataError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path), printable(path), expected)


def parse_json(text: str, where: str, expected: str = "", surrogates: bool = False, line: int = 0) -> Any:
    """What a JSON text says.

    Args:
        text: the JSON.
        where: what messages call the place.
        expected: what it should be, for the message.
        surrogates: take halves of letters: names of files may have them, where their bytes are no UTF-8.
        line: number of the line that it is, if the place has others.

    Raises:
        DataError: if it is no JSON, has more than `MAX_DEPTH` lists and objects within one another, a number of
            thousands of digits, NaN or infinity, or half of a letter.

    >>> parse_json('{"cup": [1, 2]}', "names.json")
    {'cup': [1, 2]}
    >>> parse_json("[" * 1000 + "]" * 1000, "names.json")
    Traceback (most recent call last):
    ...
    clipadapter.errors.DataError: names.json: more than 100 lists and objects lie within one another
    """
    also = f"; {expected}" if expected else ""
    here = f"{where}, line {line}" if line else where
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, character {error.colno}"
        raise DataError(f"{where}, {place}: not JSON ({error.msg}){also}") from error
    except RecursionError as error:
        raise _too_deep(here) from error
    except ValueError as error:
        raise DataError(f"{here}: {_reason(error)}{also}") from error
    _check(value, here, strings=not surrogates and _SURROGATE.search(text) is not None)
    return value


def parse_json_lines(lines: Iterator[str], where: str, surrogates: bool = False) -> Iterator[tuple[int, Any]]:
    r"""The values of JSON lines with their numbers from 1; empty lines are left out.

    Args:
        lines: of the file.
        where: what messages call the file.
        surrogates: as for `parse_json`.

    Raises:
        DataError: as `parse_json`; says which line.

    >>> list(parse_json_lines(iter(['{"path": "1.jpg"}\n', "\n", "[]"]), "pictures.jsonl"))
    [(1, {'path': '1.jpg'}), (3, [])]
    """
    for number, text in enumerate(lines, 1):
        if text.strip():
            yield number, parse_json(text, where, surrogates=surrogates, line=number)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """What a TOML text says.

    Args:
        text: the TOML.
        where: what messages call the place.

    Raises:
        DataError: if it is no TOML, or has what `parse_json` refuses.

    >>> parse_toml("shots = [1, 2]", "my.toml")
    {'shots': [1, 2]}
    """
    # Not at the top: Python 3.10 has no reader of TOML, and what answers with an exported file needs none.
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{where} is not TOML: {error}") from error
    except RecursionError as error:
        raise _too_deep(where) from error
    except ValueError as error:
        raise DataError(f"{where}: {_reason(error)}") from error
    _check(value, where, strings=False)  # TOML's reader refuses halves of letters
    return value


def _check(value: Any, where: str, strings: bool) -> None:
    """Refuse what is too deep and, if asked for, texts that no UTF-8 can hold."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        if strings:
            _check_strings(level, where)
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        if not inner:
            return
        level = [value for values in inner for value in values]
    raise _too_deep(where)


def _check_strings(level: list[Any], where: str) -> None:
    """Refuse texts, and keys of objects, that no UTF-8 can hold."""
    for text in (text for each in level for text in (each if isinstance(each, dict) else [each])):
        if isinstance(text, str) and not _is_whole(text):
            raise DataError(
                f"{where}: '{printable(text)}' has half of a letter (a lone surrogate): write the whole letter"
            )


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_deep(where: str) -> DataError:
    return DataError(f"{where}: more than {MAX_DEPTH} lists and objects lie within one another")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _reason(error: ValueError) -> str:
    """Python says in its own words that a number is too long to be one."""
    return "a number has thousands of digits" if "integer string conversion" in str(error) else str(error)
