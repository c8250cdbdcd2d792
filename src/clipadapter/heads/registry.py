"""The registry of heads; tuners, which train through a tower, are chosen by name like them.

It also keeps how faithful each head is to its source: the text that lists, tables, cards and the reference show.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from typing_extensions import Self

from clipadapter.errors import InputError
from clipadapter.heads.base import Head
from clipadapter.registry import Registry

FIDELITY_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "verified": "checked against outputs of released code",
        "paper": "written from the paper, not checked against released code",
        "partial": "only in part as published",
        "inspired": "inspired by a paper, no implementation of it",
        "own": "a method of this project",
        "not stated": "not stated",
    }
)
"""What the kinds of fidelity mean."""
AS_PUBLISHED = ("verified", "paper", "not stated")
"""Kinds that tables of results do not mark."""


@dataclass(frozen=True)
class Fidelity:
    """How faithful a head is to the publication that it is named after.

    Args:
        kind: one of `FIDELITY_KINDS`.
        statement: what was checked, and what is not as published, in sentences; empty if nothing is stated.

    >>> found = Fidelity.parse("partial: The loss is as published. The rest is ours.")
    >>> found.kind, found.is_as_published
    ('partial', False)
    >>> print(found)
    Only in part as published. The loss is as published. The rest is ours.
    """

    kind: str = "not stated"
    statement: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the text that a head is registered with: a kind, a colon and sentences.

        Raises:
            InputError: if the kind is not known, or no sentence follows.
        """
        kind, _, statement = (part.strip() for part in text.partition(":"))
        if kind == cls.kind and not statement:
            return cls()
        if kind not in FIDELITY_KINDS or not statement.endswith("."):
            known = ", ".join(FIDELITY_KINDS)
            raise InputError(f"fidelity is 'KIND: sentences.' with a kind out of {known}, but is {text!r}")
        return cls(kind, statement)

    @property
    def is_as_published(self) -> bool:
        """Whether nothing is known that keeps the head from being the published method."""
        return self.kind in AS_PUBLISHED

    def __str__(self) -> str:
        meaning = FIDELITY_KINDS[self.kind]
        return f"{meaning[0].upper()}{meaning[1:]}. {self.statement}".strip()


HEADS: Registry[Head] = Registry("head", "clipadapter.heads", "clipadapter.tuners")
list_heads = HEADS.list
head_info = HEADS.info
create_head = HEADS.create


def register_head(name: str, *, fidelity: str = Fidelity.kind, **facts: Any) -> Callable[[type[Head]], type[Head]]:
    """Class decorator that gives a head its public name; the class docstring gets its fidelity as a last paragraph.

    Args:
        name: lower-case words joined by hyphens.
        fidelity: how faithful the head is to its source: "KIND: sentences.", with a kind out of "verified", "paper",
            "partial", "inspired" and "own"; see `Fidelity`.
        facts: what else is listed beside the name, such as ``paper`` and ``compare``.

    Raises:
        InputError: if another class has the name, or the fidelity is no such text.
    """
    stated = Fidelity.parse(fidelity)
    register = HEADS.register(name, fidelity=stated, **facts)

    def decorate(cls: type[Head]) -> type[Head]:
        register(cls)
        if cls.__doc__:
            cls.__doc__ = f"{inspect.cleandoc(cls.__doc__)}\n\nFidelity: {stated}\n"
        return cls

    return decorate


def fidelity_of(name: str) -> Fidelity:
    """How faithful a head is to its source; "not stated" too for a name that no head has here.

    >>> fidelity_of("auto").kind
    'own'
    """
    stated = HEADS.info(name).facts.get("fidelity") if name in HEADS.list() else None
    return stated if isinstance(stated, Fidelity) else Fidelity()
