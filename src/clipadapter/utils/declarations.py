"""What a package's source files declare: names, summaries and parameters of registered classes, without an import.

A registry answers from here which names exist. To import all heads instead takes seconds, most of them for torch.
docs/decisions/0033 has the figures.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

REGISTRATION = re.compile(r"^@register_\w+\(\s*[\"']([^\"']+)[\"']", re.MULTILINE)
"""The decorator that registers a class, as it stands in a source file."""
CLASS = re.compile(r"^class (\w+)[(:]", re.MULTILINE)


@dataclass(frozen=True)
class Declaration:
    """A registered class as its source file declares it.

    Args:
        name: its public name.
        summary: first line of the class's docstring.
        facts: the other arguments of its registration that are literals, such as the paper.
        attributes: class attributes that are set to a literal in the body of the class or of a base in these packages.
    """

    name: str
    summary: str
    facts: Mapping[str, Any]
    attributes: Mapping[str, Any]


class PackageSource:
    """The source files of packages.

    Args:
        packages: dotted names. A package that is installed without its source has no files here.
    """

    def __init__(self, *packages: str) -> None:
        self._packages = packages
        self._parsed: dict[str, Mapping[str, ast.ClassDef]] = {}

    @functools.cached_property
    def modules(self) -> Mapping[str, str]:
        """By the name of each class that is registered, the module that registers it."""
        return {name: module for module, text in self._texts.items() for name in REGISTRATION.findall(text)}

    def declaration(self, name: str) -> Declaration:
        """What is declared of a registered class.

        Raises:
            KeyError: if none has this name.
        """
        node, registration = self._registered(name)
        facts = {keyword.arg: _literal(keyword.value) for keyword in registration.keywords if keyword.arg is not None}
        summary = (ast.get_docstring(node) or "").strip().split("\n")[0]
        return Declaration(name, summary, MappingProxyType(facts), MappingProxyType({**self.attributes(name)}))

    def attributes(self, name: str) -> Mapping[str, Any]:
        """The class attributes of a registered class, and of its bases in these packages, that are literals.

        Raises:
            KeyError: if none has this name.
        """
        attributes: dict[str, Any] = {}
        pending = [self._registered(name)[0]]
        while pending:
            node = pending.pop(0)
            attributes = {**_literal_attributes(node), **attributes}
            pending += self._bases(node)
        return attributes

    def parameters(self, name: str) -> Mapping[str, str]:
        """The fields of a registered dataclass and of its bases in these packages; empty if it has a constructor.

        Returns:
            The annotation of each field by its name, such as "float | str".

        Raises:
            KeyError: if none has this name.
        """
        annotations: dict[str, str | None] = {}
        pending = [self._registered(name)[0]]
        while pending:
            node = pending.pop(0)
            if any(isinstance(part, ast.FunctionDef) and part.name == "__init__" for part in node.body):
                return {}
            if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                annotations = {**_fields(node), **annotations}
            pending += self._bases(node)
        return {field: text for field, text in annotations.items() if text is not None}

    def overrides(self, name: str, method: str, root: str) -> bool:
        """Whether a registered class, or a base of it in these packages, defines a method of a root class anew.

        Args:
            name: public name of the class.
            method: name of the method.
            root: name of the class that defines it first.

        Raises:
            KeyError: if none has this name.
        """
        pending = [self._registered(name)[0]]
        while pending:
            node = pending.pop()
            if any(isinstance(part, ast.FunctionDef) and part.name == method for part in node.body):
                return True
            pending += [base for base in self._bases(node) if base.name != root]
        return False

    @functools.cached_property
    def _texts(self) -> Mapping[str, str]:
        files = [pair for package in self._packages for pair in _module_files(package)]
        return {module: path.read_text(encoding="utf-8") for module, path in files}

    @functools.cached_property
    def _modules_of_classes(self) -> Mapping[str, str]:
        """By the name of each class, the module that defines it."""
        return {name: module for module, text in self._texts.items() for name in CLASS.findall(text)}

    def _registered(self, name: str) -> tuple[ast.ClassDef, ast.Call]:
        for node in self._classes(self.modules[name]).values():
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and REGISTRATION.findall(f"@{ast.unparse(call)}") == [name]:
                    return node, call
        raise KeyError(name)

    def _bases(self, node: ast.ClassDef) -> list[ast.ClassDef]:
        """The bases of a class that are defined in these packages."""
        names = [name for base in node.bases if (name := ast.unparse(base)) in self._modules_of_classes]
        return [self._classes(self._modules_of_classes[name])[name] for name in names]

    def _classes(self, module: str) -> Mapping[str, ast.ClassDef]:
        """The classes of a module. A module is parsed when one of them is needed: to parse all takes 0.4 s."""
        if module not in self._parsed:
            body = ast.parse(self._texts[module]).body
            self._parsed[module] = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
        return self._parsed[module]


def _module_files(package: str) -> Iterator[tuple[str, Path]]:
    """The modules of a package and of the packages in it, with their files."""
    spec = importlib.util.find_spec(package)
    for folder in () if spec is None else spec.submodule_search_locations or ():
        for path in sorted(Path(folder).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


def _literal_attributes(node: ast.ClassDef) -> dict[str, Any]:
    """The class attributes that the body of a class sets, None for those that are no literals."""
    attributes: dict[str, Any] = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign):
            targets: list[ast.expr] = statement.targets
        else:
            targets = [statement.target] if isinstance(statement, ast.AnnAssign) else []
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        if value is not None:
            attributes |= {target.id: _literal(value) for target in targets if isinstance(target, ast.Name)}
    return attributes


def _fields(node: ast.ClassDef) -> dict[str, str | None]:
    """The fields of a dataclass that its body states, with annotations; None if the constructor does not take it."""
    return {
        statement.target.id: None
        if statement.value and "init=False" in ast.unparse(statement.value)
        else ast.unparse(_type_of(statement.annotation))
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and "ClassVar" not in ast.unparse(statement.annotation)
    }


def _type_of(annotation: ast.expr) -> ast.expr:
    """The type of ``Annotated[type, ...]``; any other annotation as it is."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        assert isinstance(annotation.slice, ast.Tuple)
        return annotation.slice.elts[0]
    return annotation


def _literal(node: ast.expr) -> Any:
    """The value of a literal; None for any other expression."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
