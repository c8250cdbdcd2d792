"""Docstrings as ``help()`` shows them: an example before the parameters, and each parameter with its default."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import TypeVar

from clipadapter.errors import brief

T = TypeVar("T")
ARGUMENTS = re.compile(r"^Args:\n((?: {4}.*\n?)+)", re.MULTILINE)
"""The section of a cleaned docstring that describes parameters."""
ARGUMENT = re.compile(r"^( {4}(\w+): .*\n?(?: {8}.*\n?)*)", re.MULTILINE)
"""The description of one parameter in that section."""
EXAMPLES = re.compile(r"^>>> .*(?:\n.+)*\n*", re.MULTILINE)
"""Examples of a cleaned docstring; each ends at an empty line."""
DEFAULT = re.compile(r"\s+Default: \S.*\.$", re.MULTILINE)
"""What `with_defaults` adds."""
LINE_LENGTH = 112
"""With the indentation of a docstring in a class it makes lines of 120 characters."""


def describe_arguments(docstring: str) -> dict[str, str]:
    """By parameter, the lines under "Args:" that describe it, with their indentation.

    Args:
        docstring: cleaned, see `inspect.cleandoc`.
    """
    section = ARGUMENTS.search(docstring)
    return {} if section is None else {match[2]: match[1].rstrip() for match in ARGUMENT.finditer(section[1])}


def with_arguments(docstring: str, descriptions: Mapping[str, str]) -> str:
    """A cleaned docstring with further parameters at the end of "Args:".

    Args:
        docstring: cleaned; one without "Args:" stays as it is.
        descriptions: as from `describe_arguments`.
    """
    section = ARGUMENTS.search(docstring)
    if not descriptions or section is None:
        return docstring
    complete = section[0].rstrip() + "".join(f"\n{text}" for text in descriptions.values()) + "\n"
    return docstring[: section.start()] + complete + docstring[section.end() :]


def with_defaults(docstring: str, defaults: Mapping[str, object]) -> str:
    r"""A cleaned docstring in which each described parameter says its default.

    Args:
        docstring: cleaned.
        defaults: by parameter.

    >>> print(with_defaults("Adds.\n\nArgs:\n    x: a number.\n    y: another.", {"y": 2}).partition("Args:")[2])
    <BLANKLINE>
        x: a number.
        y: another. Default: 2.
    """

    def add_default(match: re.Match[str]) -> str:
        if match[2] not in defaults:
            return match[0]
        description, newline = match[1].rstrip(), match[1][len(match[1].rstrip()) :]
        default = defaults[match[2]]
        words = f"Default: {json.dumps(default) if isinstance(default, str) else brief(default)}."
        *lines, last = description.split("\n")
        separator = " " if len(last) + len(words) < LINE_LENGTH else "\n" + 8 * " "
        return "\n".join([*lines, f"{last}{separator}{words}"]) + newline

    section = ARGUMENTS.search(docstring)
    if section is None:
        return docstring
    return docstring[: section.start(1)] + ARGUMENT.sub(add_default, section[1]) + docstring[section.end(1) :]


def without_defaults(docstring: str) -> str:
    """A docstring before `with_defaults`."""
    return DEFAULT.sub("", docstring)


def without_examples(docstring: str) -> str:
    """A cleaned docstring without its examples."""
    return EXAMPLES.sub("", docstring).strip()


def examples_first(docstring: str) -> str:
    r"""A cleaned docstring with its examples before "Args:".

    >>> examples_first("Adds.\n\nArgs:\n    x: a number.\n\n>>> 1 + 1\n2")
    'Adds.\n\n>>> 1 + 1\n2\n\nArgs:\n    x: a number.'
    """
    examples = [match[0].rstrip() for match in EXAMPLES.finditer(docstring)]
    text = without_examples(docstring)
    section = ARGUMENTS.search(text)
    if not examples or section is None:
        return docstring
    shown = "\n\n".join(examples)
    return f"{text[: section.start()]}{shown}\n\n{text[section.start() :]}"


def document_defaults(cls: type[T]) -> type[T]:
    """Class decorator for ``help()``: the docstring says the defaults, and the signature is that of ``__init__``.

    A class with a ``__new__`` of its own or of a base has the signature ``(*args, **kwargs)`` otherwise.
    """
    parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]
    cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    if cls.__doc__:
        defaults = {part.name: part.default for part in parameters if part.default is not part.empty}
        cls.__doc__ = with_defaults(inspect.cleandoc(cls.__doc__), defaults)
    return cls
