"""A registry of classes by name: heads, encoders, data sets and others.

A member registers itself where it is defined. Names are read from the source of the package, so that a name can be
checked without an import of torch, and only the module of a member in use is imported. Plug-ins, which have an entry
point in the group of the package's name, are imported.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from clipadapter.errors import MAX_BRIEF_CHARACTERS, InputError, UnknownNameError, brief
from clipadapter.utils.declarations import Declaration, PackageSource

T = TypeVar("T")
MAX_OWNERS = 5
"""Members that an error lists as those which take a parameter."""
TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}
"""Types of parameters whose values are checked, in words."""
MAX_LISTED_NAMES = 100
"""Known names that an error lists: all heads, but not all of a thousand classes."""


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
    """The error for an unknown name. Its message has the closest known name, and the known names.

    >>> print(unknown("head", "tip-adaptor", ["knn", "tip-adapter"]))
    no head is called 'tip-adaptor'. Did you mean 'tip-adapter'? Known: knn, tip-adapter
    """
    by_folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1) if isinstance(name, str) else []
    hint = f" Did you mean '{by_folded[close[0]]}'?" if close else ""
    shown = f"'{name}'" if isinstance(name, str) and len(name) <= MAX_BRIEF_CHARACTERS else brief(name)
    more = f" and {len(known) - MAX_LISTED_NAMES} more" if len(known) > MAX_LISTED_NAMES else ""
    names = ", ".join(known[:MAX_LISTED_NAMES]) or "none"
    return UnknownNameError(f"no {kind} is called {shown}.{hint} Known: {names}{more}")


class Registry(Generic[T]):
    """Names and classes of one kind.

    Args:
        kind: what a member is, for messages, such as ``"head"``.
        package: dotted name of the package whose modules register members; also the entry point group.
        other_packages: dotted names of other packages whose modules register members.
        read_source: whether each member is registered by a decorator ``@register_KIND("NAME", ...)``. Otherwise all
            modules of the packages are imported at the first query.
    """

    def __init__(self, kind: str, package: str, *other_packages: str, read_source: bool = True) -> None:
        self.kind = kind
        self.package = package
        self._packages = (package, *other_packages)
        self._source = PackageSource(*(self._packages if read_source else ()))
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
        return sorted(name for name in {*self._entries, *self._source.modules} if fnmatch.fnmatchcase(name, pattern))

    def info(self, name: str) -> Entry[T]:
        """The entry of one name.

        Raises:
            UnknownNameError: if no member has this name.
        """
        if name not in self._entries and name in self._source.modules:
            importlib.import_module(self._source.modules[name])
        if name not in self._entries:
            self.check(name)
        return self._entries[name]

    def name_of(self, cls: type[Any]) -> str | None:
        """The name of a class; None if it has none. No module is imported: that of the class has been.

        >>> Registry("head", "clipadapter.nothing", read_source=False).name_of(int)
        """
        return next((name for name, entry in self._entries.items() if entry.cls is cls), None)

    def check(self, name: str) -> None:
        """Refuse a name that no member has. A member of the package is not imported.

        Raises:
            UnknownNameError: if no member has this name.
        """
        if name not in self._source.modules and name not in self.list():
            raise unknown(self.kind, name, self.list())

    def declarations(self, pattern: str = "*") -> Sequence[Declaration]:
        """Members whose names match a shell wildcard, sorted. Only plug-ins and members without source are imported."""
        return [self._declaration(name) for name in self.list(pattern)]

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

    def declared_attributes(self, name: str) -> Mapping[str, Any]:
        """The class attributes of a member that its source, or that of a base, sets to literals, without an import.

        Args:
            name: of the member.

        Returns:
            The values by name; empty for a plug-in, and without source.
        """
        return self._source.attributes(name) if name in self._source.modules else {}

    def check_parameter(self, name: str, parameter: str) -> None:
        """Refuse a parameter that a member does not take. A member that is a dataclass is not imported.

        Raises:
            UnknownNameError: if no member has this name, or it does not take the parameter.
        """
        declared = self._source.parameters(name) if name in self._source.modules else ()
        if not declared:
            self.info(name).check_parameter(parameter)
        elif parameter not in declared:
            error = unknown(f"parameter of {name}", parameter, list(declared))
            owners = [other for other in sorted(self._source.modules) if parameter in self._source.parameters(other)]
            raise UnknownNameError(f"{error}. {self._describe_owners(owners)}") if owners else error

    def overrides(self, name: str, method: str, root: str) -> bool | None:
        """Whether a member defines a method of a root class anew, from its source; None for a plug-in.

        Args:
            name: of the member.
            method: name of the method.
            root: name of the class that defines it first.
        """
        return self._source.overrides(name, method, root) if name in self._source.modules else None

    def check_value(self, name: str, parameter: str, value: object) -> None:
        """Refuse a value of another type than a parameter has. A member that is a dataclass is not imported.

        Args:
            name: of the member.
            parameter: that the member takes; see `check_parameter`.
            value: a text, a number, a boolean or None, as a command line or JSON gives it.

        Raises:
            InputError: if so. The message has the types that are accepted.
        """
        declared = self._source.parameters(name) if name in self._source.modules else {}
        types = [text.strip() for text in declared.get(parameter, "").split("|")]
        if not set(types) <= set(TYPES):
            return
        if not any(_is_of_type(value, one) for one in types):
            accepted = " or ".join(TYPES[one] for one in types)
            raise InputError(f"{parameter} of {name} must be {accepted}, but is {brief(value)}")

    def _describe_owners(self, owners: Sequence[str]) -> str:
        """Which members have a parameter that another one lacks."""
        more = f" and {len(owners) - MAX_OWNERS} more" if len(owners) > MAX_OWNERS else ""
        return f"It is a parameter of the {self.kind}s {', '.join(owners[:MAX_OWNERS])}{more}"

    def _load(self) -> None:
        """Import the plug-ins; and all modules of the packages if their source declares no members."""
        if self._loaded:
            return
        self._loaded = True
        for package in () if self._source.modules else self._packages:
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                if not module.name.startswith("_"):
                    importlib.import_module(f"{package}.{module.name}")
        from importlib.metadata import entry_points  # late: most commands need no plug-in for their help

        for point in entry_points(group=self.package):
            point.load()

    def _declaration(self, name: str) -> Declaration:
        if name in self._source.modules:
            return self._source.declaration(name)
        entry = self.info(name)
        return Declaration(name, entry.summary, entry.facts, vars(entry.cls))


def _is_of_type(value: object, name: str) -> bool:
    if value is None or isinstance(value, bool):
        return name == str(type(value).__name__).replace("NoneType", "None")
    return isinstance(value, {"int": int, "float": int | float, "str": str}.get(name, ()))


def _qualified_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
