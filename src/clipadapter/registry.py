"""A registry of classes by name: heads, encoders, data sets and others.

A member registers itself where it is defined. The modules of the package are imported at the first query, and so are
plug-ins with an entry point in the group of the package's name.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from clipadapter.errors import InputError, UnknownNameError

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered member.

    Args:
        name: its public name.
        cls: the class.
        summary: first line of the class's docstring.
        facts: other facts given at registration, such as the paper.
    """

    name: str
    cls: type[T]
    summary: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def check_parameter(self, name: str) -> None:
        """Refuse a parameter that the class does not take.

        Raises:
            UnknownNameError: if the class does not take it.
        """
        known = inspect.signature(self.cls).parameters
        if name not in known and all(part.kind is not part.VAR_KEYWORD for part in known.values()):
            raise unknown(f"parameter of {self.name}", name, list(known))


def unknown(kind: str, name: str, known: list[str]) -> UnknownNameError:
    """The error for an unknown name. Its message has the closest known name and all known names.

    >>> print(unknown("head", "tip-adaptor", ["knn", "tip-adapter"]))
    no head is called 'tip-adaptor'. Did you mean 'tip-adapter'? Known: knn, tip-adapter
    """
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UnknownNameError(f"no {kind} is called '{name}'.{hint} Known: {', '.join(known) or 'none'}")


class Registry(Generic[T]):
    """Names and classes of one kind.

    Args:
        kind: what a member is, for messages, such as ``"head"``.
        package: dotted name of the package whose public modules register members; also the entry point group.
        other_packages: dotted names of other packages whose public modules register members.
    """

    def __init__(self, kind: str, package: str, *other_packages: str) -> None:
        self.kind = kind
        self.package = package
        self._packages = (package, *other_packages)
        self._entries: dict[str, Entry[T]] = {}
        self._loaded = False

    def register(self, name: str, **facts: Any) -> Callable[[type[T]], type[T]]:
        """Class decorator that gives a class its public name.

        Args:
            name: lower-case words joined by hyphens (an underscore is kept where the field writes one).
            facts: other facts, for lists.

        Raises:
            InputError: if another class has the name.
        """

        def decorate(cls: type[T]) -> type[T]:
            existing = self._entries.get(name)
            if existing is not None and _qualified_name(existing.cls) != _qualified_name(cls):
                raise InputError(f"the {self.kind} '{name}' is already {_qualified_name(existing.cls)}")
            summary = (cls.__doc__ or "").strip().split("\n")[0]
            self._entries[name] = Entry(name, cls, summary, MappingProxyType(dict(facts)))
            return cls

        return decorate

    def list(self, pattern: str = "*") -> list[str]:
        """Names that match a shell wildcard, sorted."""
        self._load()
        return sorted(name for name in self._entries if fnmatch.fnmatchcase(name, pattern))

    def info(self, name: str) -> Entry[T]:
        """The entry of one name.

        Raises:
            UnknownNameError: if no member has this name.
        """
        self._load()
        if name not in self._entries:
            raise unknown(self.kind, name, self.list())
        return self._entries[name]

    def create(self, name: str, **params: Any) -> T:
        """A new instance by name.

        Raises:
            UnknownNameError: if no member has this name, or the class does not take one of the parameters.
            InputError: if a parameter is missing.
        """
        entry = self.info(name)
        for key in params:
            entry.check_parameter(key)
        try:
            return entry.cls(**params)
        except TypeError as error:
            raise InputError(f"{self.kind} '{name}': {error}") from error

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for name in self._packages:
            for module in pkgutil.iter_modules(importlib.import_module(name).__path__):
                if not module.name.startswith("_"):
                    importlib.import_module(f"{name}.{module.name}")
        from importlib.metadata import entry_points  # late: most commands need no plug-in for their help

        for point in entry_points(group=self.package):
            point.load()


def _qualified_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
