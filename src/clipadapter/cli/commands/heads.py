"""``clipadapter heads``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from clipadapter.cli.groups import cli_command
from clipadapter.cli.options import argument
from clipadapter.cli.output import Output, facts, table
from clipadapter.rendering.marks import NOT_AS_PUBLISHED
from clipadapter.utils.registry import unknown

MARKS = {
    "*": "transductive: uses the pictures to classify when it is fitted",
    "+": "can also learn from pictures without labels (fit --unlabelled)",
    NOT_AS_PUBLISHED: "is not the published method, or has default parameters of this project in place of its recipe",
}
"""Marks of heads in the table, and their meaning."""


@cli_command("clipadapter heads 'clip-*'")
def command(out: Output, pattern: str = argument(default="*")) -> None:
    """List the heads, or those whose name matches PATTERN or, if none does, contains it.

    If only one name matches, its description and its parameters (for --set of other commands) are shown. The fidelity
    says how close a head is to the publication that it is named after.
    """
    from clipadapter.heads.registry import HEADS

    names = HEADS.list(pattern)
    if not names:
        asked, pattern = pattern, f"*{pattern}*"
        names = HEADS.list(pattern)
        if not names:
            raise unknown("head", asked, HEADS.list())
        shown = (
            f"{names[0]}, the only one whose name contains it" if len(names) == 1 else "those whose name contains it"
        )
        out.note(f"no head is called '{asked}': showing {shown}")
    entries = [_describe_for_json(name) for name in names] if out.as_json else None
    out.result(entries, _describe_head(names[0]) if len(names) == 1 else _list_heads(pattern))


def _describe_for_json(name: str) -> dict[str, Any]:
    from clipadapter.heads import default_parameters, fidelity_of, head_info

    entry = head_info(name)
    return {
        "name": name,
        "summary": entry.summary,
        "needs_text": entry.cls.needs_text,
        "transductive": entry.cls.transductive,
        "accepts_unlabelled": entry.cls.transductive or entry.cls.accepts_unlabelled,
        "recipes": list(entry.cls.recipes),
        "presets": {key: dict(values) for key, values in entry.cls.presets.items()},
        "preset_note": entry.cls.preset_note if entry.cls.presets else None,
        "params": default_parameters(name),
        **entry.facts,
        "fidelity": asdict(fidelity_of(name)),
    }


def _list_heads(pattern: str) -> str:
    """Return the table of the heads. Their source is read; torch, which takes seconds, is not imported."""
    from clipadapter.heads.registry import HEADS, Fidelity

    rows, kinds, marks = [], [], ""
    for head in map(HEADS.info, HEADS.list(pattern)):
        stated, traits = Fidelity.of(head.facts), head.attributes
        mark = "*" if traits.get("transductive") else "+" if traits.get("accepts_unlabelled") else ""
        mark += "" if stated.is_as_published else NOT_AS_PUBLISHED
        rows.append([f"{head.name} {mark}".strip(), stated.kind, head.summary])
        kinds.append(stated.kind)
        marks += mark
    text = f"{table(['head', 'fidelity', 'summary'], rows)}\n\n{_describe_kinds(kinds)}"
    notes = "\n".join(f"{mark} {note}" for mark, note in MARKS.items() if mark in marks)
    return f"{text}\n\n{notes}" if notes else text


def _describe_kinds(kinds: Collection[str]) -> str:
    from clipadapter.heads.registry import FIDELITY_KINDS

    return "\n".join(f"{kind}: {meaning}" for kind, meaning in FIDELITY_KINDS.items() if kind in kinds)


def _describe_head(name: str) -> str:
    """Return the docstring without its example, the fidelity, the defaults, the recipes and the presets."""
    from clipadapter.heads import default_parameters, fidelity_of, head_info

    cls, fidelity, params = head_info(name).cls, fidelity_of(name), default_parameters(name)
    docstring = inspect.cleandoc(cls.__doc__ or "").partition("\n\nFidelity: ")[0]
    description = re.sub(r"^>>> .*(?:\n.+)*\n*", "", docstring, flags=re.MULTILINE).strip()
    defaults = f"\n\nDefaults:\n{facts(list(params.items()))}" if params else ""
    recipes = f"\n\nRecipes (--recipe): {', '.join(cls.recipes)}" if cls.recipes else ""
    presets = f"\n\nPresets: {', '.join(sorted(cls.presets))}\n{cls.preset_note}" if cls.presets else ""
    return f"{name}: {description}\n\nFidelity ({fidelity.kind}): {fidelity}{defaults}{recipes}{presets}"
