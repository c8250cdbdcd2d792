"""A registry of classes by name: heads, encoders and others.

A member registers itself where it is defined, by a decorator ``@register_KIND("NAME", ...)``. What is known of a member
of this package is read from its source file; the file is imported when the class is needed. Importing all heads takes
seconds, most of them for torch (docs/decisions/0033). A plug-in has an entry point in the group of the package's name,
and is imported.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import functools
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from clipadapter.errors import MAX_BRIEF_CHARACTERS, InputError, UnknownNameError, brief
from clipadapter.utils.formatting import format_list

T = TypeVar("T")
ROOT = Path(__file__).parents[1]  # the folder of this package, whose source files are read
MAX_OWNERS = 5  # members that an error lists as those which take a parameter
TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}
"""Types of parameters whose values are checked, in words."""
MAX_LISTED_NAMES = 100  # known names that an error lists: all heads, but not all of a thousand classes


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A member. Of a member of this package all but ``cls`` is known without an import."""

    name: str  # its public name
    load: Callable[[], type[T]]  # imports and gives the class
    docstring: str  # of the class, cleaned
    facts: Mapping[str, Any]  # what else the registration states, such as the paper
    attributes: Mapping[str, Any]  # that the class or a base sets to a literal; None for another value
    parameters: Mapping[str, str]  # of a dataclass, with their types, such as "float | str"; else empty
    methods: Mapping[str, str]  # the class that defines each

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.docstring.split("\n")[0]

    @property
    def cls(self) -> type[T]:
        """The class."""
        return self.load()


def unknown(kind: str, name: str, known: list[str]) -> UnknownNameError:
    """The error for an unknown name. Its message has the closest known name, and the known names."""
    by_folded = {each.casefold(): each for each in known}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1) if isinstance(name, str) else []
    hint = f" Did you mean '{by_folded[close[0]]}'?" if close else ""
    shown = f"'{name}'" if isinstance(name, str) and len(name) <= MAX_BRIEF_CHARACTERS else brief(name)
    return UnknownNameError(
        f"no {kind} is called {shown}.{hint} Known: {format_list(known, MAX_LISTED_NAMES) or 'none'}"
    )


class Registry(Generic[T]):
    """Names and classes of one kind.

    Args:
        kind: what a member is, for messages, such as ``"head"``.
        packages: dotted names of the packages whose modules register members; the first is the entry point group too.
    """

    def __init__(self, kind: str, *packages: str) -> None:
        self.kind, self._packages = kind, packages
        self._classes: dict[str, type[T]] = {}  # those that were imported
        self._entries: dict[str, Entry[T]] = {}
        self._has_plug_ins = False

    def register(self, name: str, **facts: Any) -> Callable[[type[T]], type[T]]:
        """Class decorator that gives a class its public name."""

        def decorate(cls: type[T]) -> type[T]:
            existing = self._classes.get(name, cls)
            if (existing.__module__, existing.__qualname__) != (cls.__module__, cls.__qualname__):
                raise InputError(f"the {self.kind} '{name}' is already {existing.__module__}.{existing.__qualname__}")
            self._classes[name] = cls
            if name not in self._modules:
                self._entries[name] = _describe_class(name, cls, facts)
            return cls

        return decorate

    def list(self, pattern: str = "*") -> list[str]:
        """Names that match a shell wildcard, sorted."""
        if not self._has_plug_ins:
            self._has_plug_ins = True
            from importlib.metadata import entry_points  # late: most commands need no plug-in for their help

            for point in entry_points(group=self._packages[0]):
                point.load()
        return sorted(name for name in {*self._entries, *self._modules} if fnmatch.fnmatchcase(name, pattern))

    def info(self, name: str) -> Entry[T]:
        """The entry of one name."""
        self.check(name)
        if name not in self._entries:
            self._entries[name] = _read_entry(self._modules[name], name, lambda: self._import(name))
        return self._entries[name]

    def name_of(self, cls: type[Any]) -> str | None:
        """The name of a class; None if it has none. No module is imported: that of the class has been."""
        return next((name for name, each in self._classes.items() if each is cls), None)

    def check(self, name: str) -> None:
        """Refuse a name that no member has. A member of the package is not imported."""
        if name not in self._modules and name not in self.list():
            raise unknown(self.kind, name, self.list())

    def create(self, name: str, **params: Any) -> T:
        """A new instance by name."""
        cls = self.info(name).cls
        for key in params:
            _check_signature(name, cls, key)
        try:
            return cls(**params)
        except TypeError as error:
            raise InputError(f"{self.kind} '{name}': {error}") from error

    def overrides(self, name: str, method: str, root: str) -> bool:
        """Whether the class of a member, or a base of it, defines a method of the class ``root`` anew."""
        return self.info(name).methods.get(method, root) != root

    def check_parameter(self, name: str, parameter: str) -> None:
        """Refuse a parameter that a member does not take. A member that is a dataclass is not imported."""
        entry = self.info(name)
        if not entry.parameters:
            _check_signature(name, entry.cls, parameter)
        elif parameter not in entry.parameters:
            error = unknown(f"parameter of {name}", parameter, list(entry.parameters))
            owners = [other for other in self.list() if parameter in self.info(other).parameters]
            hint = f". It is a parameter of the {self.kind}s {format_list(owners, MAX_OWNERS)}" if owners else ""
            raise UnknownNameError(f"{error}{hint}")

    def check_value(self, name: str, parameter: str, value: object) -> None:
        """Refuse a value of another type than a parameter has. A member that is a dataclass is not imported."""
        types = [text.strip() for text in self.info(name).parameters.get(parameter, "").split("|")]
        own = "None" if value is None else type(value).__name__
        is_right = own in types or (own == "int" and "float" in types)
        if set(types) <= set(TYPES) and not is_right:
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

    def _import(self, name: str) -> type[T]:
        if name not in self._classes:
            importlib.import_module(self._modules[name])
        return self._classes[name]


def _check_signature(member: str, cls: type[Any], name: str) -> None:
    known = inspect.signature(cls).parameters
    if name not in known and all(part.kind is not part.VAR_KEYWORD for part in known.values()):
        raise unknown(f"parameter of {member}", name, list(known))


def _describe_class(name: str, cls: type[T], facts: Mapping[str, Any]) -> Entry[T]:
    """The entry of a class that is imported already, such as that of a plug-in."""
    bases = [base for base in reversed(cls.__mro__) if base is not object]
    attributes = {key: value for base in bases for key, value in vars(base).items()}
    methods = {key: base.__name__ for base in bases for key in vars(base)}
    return Entry(name, lambda: cls, inspect.cleandoc(cls.__doc__ or ""), facts, attributes, {}, methods)


# ---- The source of a member ----


@functools.cache
def _statements(module: str) -> list[ast.stmt]:
    path = ROOT.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8")).body


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


def _read_entry(module: str, name: str, load: Callable[[], type[T]]) -> Entry[T]:
    classes = [node for node in _statements(module) if isinstance(node, ast.ClassDef)]
    calls = [(call, node) for node in classes for call in node.decorator_list if isinstance(call, ast.Call)]
    registration, cls = next((call, node) for call, node in calls if call.args and _literal(call.args[0]) == name)
    attributes: dict[str, Any] = {}
    parameters: dict[str, str] = {}
    methods: dict[str, str] = {}
    # The root first: what a class says replaces what its bases say. A base of two bases comes before both.
    for node in dict.fromkeys(reversed([*_lineage(module, cls.name)])):
        decorators = " ".join(map(ast.unparse, node.decorator_list))
        is_dataclass = "dataclass" in decorators or "register_head" in decorators
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
    return Entry(name, load, ast.get_docstring(cls) or "", facts, attributes, parameters, methods)


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
