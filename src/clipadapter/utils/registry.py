"""A registry of classes by name: heads, encoders and others.

A member registers itself where it is defined, by a decorator ``@register_KIND("NAME", ...)``. A name is checked, and
members are listed, from the source of the package: importing all heads takes seconds, most of them for torch
(docs/decisions/0033). A plug-in has an entry point in the group of the package's name, and is imported.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from clipadapter.errors import MAX_BRIEF_CHARACTERS, InputError, UnknownNameError, brief

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
"""The folder of this package, whose source files are read."""
MAX_OWNERS = 5
"""Members that an error lists as those which take a parameter."""
TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}
"""Types of parameters whose values are checked, in words."""
MAX_LISTED_NAMES = 100
"""Known names that an error lists: all heads, but not all of a thousand classes."""


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered member."""

    name: str  # its public name
    cls: type[T]  # the class
    summary: str  # first line of the class's docstring
    facts: Mapping[str, Any] = field(default_factory=dict)  # other facts given at registration, such as the paper


@dataclass(frozen=True)
class Declaration:
    """What the source of a member says, without an import."""

    name: str
    summary: str
    facts: Mapping[str, Any]  # literals among the arguments of the registration, such as the paper
    attributes: Mapping[str, Any]  # that the class or a base sets to a literal; None for another value
    parameters: Mapping[str, str]  # of a dataclass, with their types, such as "float | str"; else empty
    methods: Mapping[str, str]  # the class that defines each


def unknown(kind: str, name: str, known: list[str]) -> UnknownNameError:
    """The error for an unknown name. Its message has the closest known name, and the known names."""
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
        packages: dotted names of the packages whose modules register members; the first is the entry point group too.
    """

    def __init__(self, kind: str, *packages: str) -> None:
        self.kind, self._packages = kind, packages
        self._entries: dict[str, Entry[T]] = {}
        self._has_plug_ins = False

    def register(self, name: str, **facts: Any) -> Callable[[type[T]], type[T]]:
        """Class decorator that gives a class its public name."""

        def decorate(cls: type[T]) -> type[T]:
            existing = self._entries.get(name)
            if existing is not None and _qualified_name(existing.cls) != _qualified_name(cls):
                raise InputError(f"the {self.kind} '{name}' is already {_qualified_name(existing.cls)}")
            self._entries[name] = Entry(name, cls, _summary(cls.__doc__), MappingProxyType(dict(facts)))
            return cls

        return decorate

    def list(self, pattern: str = "*") -> list[str]:
        """Names that match a shell wildcard, sorted."""
        self._load_plug_ins()
        return sorted(name for name in {*self._entries, *self._modules} if fnmatch.fnmatchcase(name, pattern))

    def info(self, name: str) -> Entry[T]:
        """The entry of one name."""
        if name not in self._entries and name in self._modules:
            importlib.import_module(self._modules[name])
        if name not in self._entries:
            self.check(name)
        return self._entries[name]

    def name_of(self, cls: type[Any]) -> str | None:
        """The name of a class; None if it has none. No module is imported: that of the class has been."""
        return next((name for name, entry in self._entries.items() if entry.cls is cls), None)

    def check(self, name: str) -> None:
        """Refuse a name that no member has. A member of the package is not imported."""
        if name not in self._modules and name not in self.list():
            raise unknown(self.kind, name, self.list())

    def create(self, name: str, **params: Any) -> T:
        """A new instance by name."""
        entry = self.info(name)
        for key in params:
            _check_parameter(entry, key)
        try:
            return entry.cls(**params)
        except TypeError as error:
            raise InputError(f"{self.kind} '{name}': {error}") from error

    # ---- Without an import of the member ----

    def declarations(self, pattern: str = "*") -> Sequence[Declaration]:
        """Members whose names match a shell wildcard, sorted. Only plug-ins are imported."""
        return [self._declaration(name) for name in self.list(pattern)]

    def declared_attributes(self, name: str) -> Mapping[str, Any]:
        """The class attributes of a member that are literals; empty if no member has this name."""
        return self._declaration(name).attributes if name in self._modules or name in self.list() else {}

    def overrides(self, name: str, method: str, root: str) -> bool:
        """Whether the class of a member, or a base of it, defines a method of the class ``root`` anew."""
        return self._declaration(name).methods.get(method, root) != root

    def check_parameter(self, name: str, parameter: str) -> None:
        """Refuse a parameter that a member does not take. A member that is a dataclass is not imported."""
        declared = self._declaration(name).parameters
        if not declared:
            _check_parameter(self.info(name), parameter)
        elif parameter not in declared:
            error = unknown(f"parameter of {name}", parameter, list(declared))
            owners = [each.name for each in self.declarations() if parameter in each.parameters]
            if not owners:
                raise error
            more = f" and {len(owners) - MAX_OWNERS} more" if len(owners) > MAX_OWNERS else ""
            raise UnknownNameError(
                f"{error}. It is a parameter of the {self.kind}s {', '.join(owners[:MAX_OWNERS])}{more}"
            )

    def check_value(self, name: str, parameter: str, value: object) -> None:
        """Refuse a value of another type than a parameter has. A member that is a dataclass is not imported."""
        types = [text.strip() for text in self._declaration(name).parameters.get(parameter, "").split("|")]
        if set(types) <= set(TYPES) and not any(_is_of_type(value, one) for one in types):
            accepted = " or ".join(TYPES[one] for one in types)
            raise InputError(f"{parameter} of {name} must be {accepted}, but is {brief(value)}")

    @functools.cached_property
    def _modules(self) -> Mapping[str, str]:
        """By the name of each member of the packages, the module that registers it."""
        modules: dict[str, str] = {}
        for package in self._packages:
            for path in sorted(ROOT.joinpath(*package.split(".")[1:]).rglob("*.py")):
                module = ".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts))
                registrations = path.read_text(encoding="utf-8").split("\n@register_")[1:]
                modules |= {text.split('"', 2)[1]: module for text in registrations}
        return modules

    def _load_plug_ins(self) -> None:
        if self._has_plug_ins:
            return
        self._has_plug_ins = True
        from importlib.metadata import entry_points  # late: most commands need no plug-in for their help

        for point in entry_points(group=self._packages[0]):
            point.load()

    def _declaration(self, name: str) -> Declaration:
        if name in self._modules:
            return _read_declaration(self._modules[name], name)
        entry = self.info(name)
        bases = [base for base in reversed(entry.cls.__mro__) if base is not object]
        attributes = {key: value for base in bases for key, value in vars(base).items()}
        methods = {key: base.__name__ for base in bases for key in vars(base)}
        return Declaration(name, entry.summary, entry.facts, attributes, {}, methods)


def _check_parameter(entry: Entry[Any], name: str) -> None:
    known = inspect.signature(entry.cls).parameters
    if name not in known and all(part.kind is not part.VAR_KEYWORD for part in known.values()):
        raise unknown(f"parameter of {entry.name}", name, list(known))


def _is_of_type(value: object, name: str) -> bool:
    if value is None or isinstance(value, bool):
        return name == str(type(value).__name__).replace("NoneType", "None")
    return isinstance(value, {"int": int, "float": int | float, "str": str}.get(name, ()))


def _qualified_name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _summary(docstring: str | None) -> str:
    return (docstring or "").strip().split("\n")[0]


# ---- The source of a member ----


def _source_file(module: str) -> Path:
    path = ROOT.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@functools.cache
def _statements(module: str) -> Sequence[ast.stmt]:
    return ast.parse(_source_file(module).read_text(encoding="utf-8")).body


def _lineage(module: str, name: str) -> Iterator[ast.ClassDef]:
    """A class that a module defines or imports, then its bases; without those of other packages."""
    for node in _statements(module):
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield node
            for base in node.bases:
                yield from _lineage(module, ast.unparse(base))
        elif isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            module_of_base = str(node.module)
            yield from _lineage(module_of_base, name) if module_of_base.startswith(f"{ROOT.name}.") else ()


@functools.cache
def _read_declaration(module: str, name: str) -> Declaration:
    classes = [node for node in _statements(module) if isinstance(node, ast.ClassDef)]
    calls = [(call, node) for node in classes for call in node.decorator_list if isinstance(call, ast.Call)]
    registration, cls = next((call, node) for call, node in calls if call.args and _literal(call.args[0]) == name)
    attributes: dict[str, Any] = {}
    parameters: dict[str, str] = {}
    methods: dict[str, str] = {}
    # The root first: what a class says replaces what its bases say. A base of two bases comes before both.
    for node in dict.fromkeys(reversed([*_lineage(module, cls.name)])):
        is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
        for part in node.body:
            if isinstance(part, ast.FunctionDef):
                methods[part.name] = node.name
            elif isinstance(part, ast.Assign):
                attributes |= {ast.unparse(target): _literal(part.value) for target in part.targets}
            elif isinstance(part, ast.AnnAssign):
                attribute = ast.unparse(part.target)
                if part.value is not None:
                    attributes[attribute] = _literal(part.value)
                if is_dataclass and "ClassVar" not in ast.unparse(part.annotation):
                    is_given = part.value is None or "init=False" not in ast.unparse(part.value)
                    parameters[attribute] = _type_of(part.annotation) if is_given else ""
    parameters = {} if "__init__" in methods else {key: text for key, text in parameters.items() if text}
    facts = {keyword.arg: _literal(keyword.value) for keyword in registration.keywords if keyword.arg is not None}
    return Declaration(name, _summary(ast.get_docstring(cls)), facts, attributes, parameters, methods)


def _type_of(annotation: ast.expr) -> str:
    """The type of ``Annotated[type, ...]``; any other annotation as it is."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        assert isinstance(annotation.slice, ast.Tuple)
        return ast.unparse(annotation.slice.elts[0])
    return ast.unparse(annotation)


def _literal(node: ast.expr) -> Any:
    """The value of a literal; None for any other expression."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
