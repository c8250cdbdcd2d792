"""What the reference makes of docstrings.

Markdown takes ``>>>`` for a quotation, unless it stands in a block of code.
"""

from __future__ import annotations

import re
from textwrap import dedent
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
LITERAL = re.compile(r"^::\n\n((?:(?: {4}.*)?\n|(?: {4}.+)$)+)", re.MULTILINE)
FIELDS = {"NamedTuple", "ABC", "BaseModel", "FrozenModel"}
"""Bases of such classes, by their names."""


def head_docstrings() -> dict[str, tuple[str, str]]:
    """By the path of each registered head, its docstring with the inherited parameters, and its fidelity."""
    from clipadapter.heads import head_info, list_heads

    classes = [head_info(name).cls for name in list_heads()]
    parts = {f"{cls.__module__}.{cls.__qualname__}": (cls.__doc__ or "").partition("\n\nFidelity: ") for cls in classes}
    return {path: (docstring, fidelity.strip()) for path, (docstring, _, fidelity) in parts.items()}


class Docstrings(griffe.Extension):
    """Puts each example, which ends at an empty line, into a block, and what stands under `::` as well.

    The fields of a named tuple, of a record, or of what a base promises, are arguments to our docstrings, but not to
    griffe: it sees no constructor. When a head is registered, it becomes a dataclass and its docstring is completed,
    which griffe does not see either.
    """

    def __init__(self) -> None:
        self.heads = head_docstrings()

    def on_package(self, *, pkg: griffe.Module, **unused: Any) -> None:
        """Make the names public that a package imports at their first use: griffe reads them, but not ``__all__``.

        And have griffe take heads for dataclasses, which is done after this.
        """
        dataclass = griffe.ExprCall(griffe.ExprName("dataclasses.dataclass"), [griffe.ExprKeyword("kw_only", "True")])
        for path in self.heads:
            pkg[path.removeprefix(f"{pkg.path}.")].decorators.append(
                griffe.Decorator(dataclass, lineno=None, endlineno=None)
            )
        modules = [pkg]
        for module in modules:
            modules += [each for each in module.modules.values() if not each.is_alias]
            if "lazy_loader" in module.members:
                module.exports = [
                    name for name, each in module.members.items() if each.is_alias and name != "lazy_loader"
                ]

    def on_object(self, *, obj: griffe.Object, **unused: Any) -> None:
        """Change one docstring."""
        if obj.docstring is None:
            return
        docstring, fidelity = self.heads.get(obj.path, (obj.docstring.value, ""))
        text = EXAMPLE.sub(r"```pycon\n\g<0>\n```", docstring)
        text = LITERAL.sub(lambda match: f"```python\n{dedent(match[1]).strip()}\n```\n\n", text)
        text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
        if isinstance(obj, griffe.Class) and {str(base) for base in obj.bases} & FIELDS:
            text = text if "__init__" in obj.members else text.replace("Args:", "Attributes:")
        if fidelity:
            summary, _, body = text.partition("\n")
            text = f"{summary}\n\nFidelity: {fidelity}\n{body}"
        obj.docstring.value = text
