"""The heads that studies compare: their names, their versions, and the baselines beside them."""

from __future__ import annotations

import ast
import sys
from functools import cache
from hashlib import blake2b
from pathlib import Path

from clipadapter.heads import Head, create_head, head_info, list_heads
from clipadapter.heads.registry import head_name

BASELINES = ("zero-shot", "linear-probe")  # heads that every comparison includes
HEAD_WITHOUT_SHOTS = "zero-shot"  # it learns nothing, so it needs no stored features of shots


def default_heads() -> dict[str, Head]:
    """An unfitted head of each method, baselines first, without those with ``@register_head(compare=False)``."""
    names = [name for name in list_heads() if head_info(name).facts.get("compare", True)]
    return {name: create_head(name) for name in dict.fromkeys([*BASELINES, *names])}


@cache
def method_version(cls: type[Head]) -> str:
    """The version of a method, part of the key of its records: what ``register_head(version=2)`` states, else 1."""
    # The author raises the number when a fit with the same parameters gives other logits. It survives renames, comments
    # and moved code, which a hash of the source does not; tests/bench/test_method_versions.py fails if a head of this
    # package gives other logits and has the same number. No such test covers a head of another package, so its version
    # also has a hash of that module.
    name = head_name(cls)
    stated = 1 if name is None else head_info(name).facts.get("version", 1)
    if cls.__module__.startswith("clipadapter."):
        return str(stated)
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return f"{stated}+{code_digest(Path(file).read_text(encoding='utf-8'))}" if file else str(stated)


def code_digest(source: str) -> str:
    """Hash of what Python code does: of its syntax tree without comments, docstrings and annotations."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        vars(node).update({name: None for name in ("annotation", "returns") if hasattr(node, name)})
        for name in ("body", "orelse", "finalbody"):
            if isinstance(lines := getattr(node, name, None), list):
                setattr(node, name, [line for own in lines for line in _without_text(own)])
    return blake2b(ast.dump(tree).encode(), digest_size=8).hexdigest()


def _without_text(line: ast.stmt) -> list[ast.stmt]:
    """A statement without its annotation; none for a text that stands alone, or an annotation alone."""
    if isinstance(line, ast.AnnAssign):
        return [ast.Assign(targets=[line.target], value=line.value)] if line.value else []
    is_text = isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)
    return [] if is_text else [line]


@cache
def package_digest() -> str:
    """Hash of the source of this package. Records state it; their keys do not depend on it."""
    root = Path(__file__).parents[1]
    total = blake2b(digest_size=16)
    for path in sorted(root.rglob("*.py")):
        total.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
