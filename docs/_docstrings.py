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
FIELDS = {"NamedTuple", "ABC", "BaseModel", "Part", "_Part"}
"""Bases of such classes, by their names."""


def fidelities() -> dict[str, str]:
    """By the path of each registered class how faithful it is to its source."""
    from clipadapter.heads import fidelity_of, head_info, list_heads

    classes = {name: head_info(name).cls for name in list_heads()}
    return {f"{cls.__module__}.{cls.__qualname__}": str(fidelity_of(name)) for name, cls in classes.items()}


class Docstrings(griffe.Extension):
    """Puts each example, which ends at an empty line, into a block, and what stands under `::` as well.

    The fields of a named tuple, of a record, or of what a base promises, are arguments to our docstrings, but not to
    griffe: it sees no constructor. A head's class says how faithful it is to its source, which griffe can't see either.
    """

    def __init__(self) -> None:
        self.fidelities = fidelities()

    def on_object(self, *, obj: griffe.Object, **unused: Any) -> None:
        """Change one docstring."""
        if obj.docstring is None:
            return
        text = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
        text = LITERAL.sub(lambda found: f"```python\n{dedent(found[1]).strip()}\n```\n\n", text)
        text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
        if isinstance(obj, griffe.Class) and {str(base) for base in obj.bases} & FIELDS:
            text = text if "__init__" in obj.members else text.replace("Args:", "Attributes:")
        if obj.path in self.fidelities:
            summary, _, rest = text.partition("\n")
            text = f"{summary}\n\nFidelity: {self.fidelities[obj.path]}\n{rest}"
        obj.docstring.value = text
