"""A registry of classes by name: heads, encoders, data sets and others.

A member registers itself where it is defined. Names are read from the source of the package, so that a name can be
checked without an import of torch, and only the module of a member in use is imported. Plug-ins, which have an entry
point in the group of the package's name, are imported.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from clipadapter.errors import MAX_BRIEF_CHARACTERS, InputError, UnknownNameError, brief

T = TypeVar("T")
MAX_LISTED_NAMES = 100
"""Known names that an error lists: all heads, but not all of a thousand classes."""


REGISTRATION = re.compile(r"^@register_\w+\(\s*[\"']([^\"']+)[\"']", re.MULTILINE)
"""The decorator that registers a member, as it stands in a source file."""


@dataclass(frozen=True)
class Declaration:
    """A member as its source file declares it, read without an import.

    Args:
        name: its public name.
        summary: first line of the class's docstring.
        facts: the other arguments of its registration that are literals, such as the paper.
        attributes: class attributes that are set to a literal in the body of the class.
    """

    name: str
    summary: str
    facts: Mapping[str, Any]
    attributes: Mapping[str, Any]


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
    close = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
    hint = f" Did you mean '{close[0]}'?" if close else ""
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
        self._read_source = read_source
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
        return sorted(name for name in {*self._entries, *self._modules} if fnmatch.fnmatchcase(name, pattern))

    def info(self, name: str) -> Entry[T]:
        """The entry of one name.

        Raises:
            UnknownNameError: if no member has this name.
        """
        if name not in self._entries and name in self._modules:
            importlib.import_module(self._modules[name][0])
        if name not in self._entries:
            self.check(name)
        return self._entries[name]

    def check(self, name: str) -> None:
        """Refuse a name that no member has. A member of the package is not imported.

        Raises:
            UnknownNameError: if no member has this name.
        """
        if name not in self._modules and name not in self.list():
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

    def check_parameter(self, name: str, parameter: str) -> None:
        """Refuse a parameter that a member does not take. A member that is a dataclass is not imported.

        Raises:
            UnknownNameError: if no member has this name, or it does not take the parameter.
        """
        fields = self._fields(name)
        if not fields:
            self.info(name).check_parameter(parameter)
        elif parameter not in fields:
            raise unknown(f"parameter of {name}", parameter, [*fields])

    def _fields(self, name: str) -> Sequence[str]:
        """The fields of a dataclass and its bases, from their source; empty if the member is something else."""
        fields: dict[str, bool] = {}
        pending = [next((cls for cls, call in self._registered if call.args and _literal(call.args[0]) == name), None)]
        while pending:
            node = pending.pop(0)
            if node is None:
                continue
            if any(isinstance(part, ast.FunctionDef) and part.name == "__init__" for part in node.body):
                return []
            if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                fields = {**_annotated_names(node), **fields}
            pending += [self._classes.get(ast.unparse(base)) for base in node.bases]
        return [field for field, is_parameter in fields.items() if is_parameter]

    @functools.cached_property
    def _classes(self) -> dict[str, ast.ClassDef]:
        """The classes of the packages by name, from their source."""
        files = [path for package in self._packages for _, path in _source_files(package)] if self._read_source else []
        nodes = [node for path in files for node in ast.parse(path.read_text(encoding="utf-8")).body]
        return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}

    @property
    def _registered(self) -> Iterator[tuple[ast.ClassDef, ast.Call]]:
        for node in self._classes.values():
            yield from ((node, call) for call in node.decorator_list if isinstance(call, ast.Call))

    @functools.cached_property
    def _modules(self) -> dict[str, tuple[str, Path]]:
        """By name, the module of each member whose source declares it, and its file."""
        if not self._read_source:
            return {}
        return {
            name: (module, path)
            for package in self._packages
            for module, path in _source_files(package)
            for name in REGISTRATION.findall(path.read_text(encoding="utf-8"))
        }

    def _load(self) -> None:
        """Import the plug-ins; and all modules of the packages if their source declares no members."""
        if self._loaded:
            return
        self._loaded = True
        for package in () if self._modules else self._packages:
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
                if not module.name.startswith("_"):
                    importlib.import_module(f"{package}.{module.name}")
        from importlib.metadata import entry_points  # late: most commands need no plug-in for their help

        for point in entry_points(group=self.package):
            point.load()

    def _declaration(self, name: str) -> Declaration:
        if name in self._modules:
            for node, call in _decorated_classes(self._modules[name][1]):
                if call.args and _literal(call.args[0]) == name:
                    return _declare(name, node, call)
        entry = self.info(name)
        return Declaration(name, entry.summary, entry.facts, vars(entry.cls))


def _source_files(package: str) -> list[tuple[str, Path]]:
    """The modules of a package and its packages, with their files; none if the package is installed without source."""
    spec = importlib.util.find_spec(package)
    found = []
    for folder in () if spec is None else spec.submodule_search_locations or ():
        for path in sorted(Path(folder).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found.append((".".join((package, *(part for part in parts if part != "__init__"))), path))
    return found


def _decorated_classes(path: Path) -> Iterator[tuple[ast.ClassDef, ast.Call]]:
    """Each class of a source file with each call that decorates it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        for call in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            if isinstance(node, ast.ClassDef) and isinstance(call, ast.Call):
                yield node, call


def _declare(name: str, node: ast.ClassDef, registration: ast.Call) -> Declaration:
    """What the definition of a class and its registration state as literals."""
    facts = {keyword.arg: _literal(keyword.value) for keyword in registration.keywords if keyword.arg is not None}
    attributes: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            attributes |= {
                target.id: _literal(statement.value) for target in statement.targets if isinstance(target, ast.Name)
            }
        elif (
            isinstance(statement, ast.AnnAssign)
            and statement.value is not None
            and isinstance(statement.target, ast.Name)
        ):
            attributes[statement.target.id] = _literal(statement.value)
    summary = (ast.get_docstring(node) or "").strip().split("\n")[0]
    return Declaration(name, summary, MappingProxyType(facts), MappingProxyType(attributes))


def _annotated_names(node: ast.ClassDef) -> dict[str, bool]:
    """The fields of a dataclass that its body states, and whether the constructor takes them."""
    return {
        statement.target.id: not (statement.value and "init=False" in ast.unparse(statement.value))
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and "ClassVar" not in ast.unparse(statement.annotation)
    }


def _literal(node: ast.expr) -> Any:
    """The value of a literal; None for any other expression."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _qualified_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
