"""``clipadapter heads``."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import click

from clipadapter.cli.options import output_options
from clipadapter.cli.output import Output, facts, table
from clipadapter.registry import unknown


@click.command(epilog="Example: clipadapter heads 'clip-*'")
@click.argument("pattern", default="*")
@output_options
def command(pattern: str, out: Output) -> None:
    """List the heads, or those whose name matches PATTERN.

    If only one does, its description and its parameters, for --set of other commands, are shown too. Fidelity says how
    close a head is to the publication that it is named after.
    """
    from clipadapter.heads import fidelity_of, head_info, list_heads

    names = list_heads(pattern)
    if not names:
        raise unknown("head", pattern, list_heads())
    found = [
        {
            "name": name,
            "summary": entry.summary,
            "needs_text": entry.cls.needs_text,
            "transductive": entry.cls.transductive,
            "recipes": list(entry.cls.recipes()),
            "presets": {key: dict(values) for key, values in entry.cls.presets.items()},
            "preset_note": entry.cls.preset_note if entry.cls.presets else None,
            "params": {key: part.default for key, part in inspect.signature(entry.cls).parameters.items()},
            **entry.facts,
            "fidelity": asdict(fidelity_of(name)),
        }
        for name, entry in ((name, head_info(name)) for name in names)
    ]
    rows = [[_marked(head), head["fidelity"]["kind"], head["summary"]] for head in found]
    text = f"{table(['head', 'fidelity', 'what it is'], rows)}\n\n{_kinds({row[1] for row in rows})}"
    if any(head["transductive"] for head in found):
        text += "\n\n* transductive: sees the pictures to classify when it is fitted"
    if len(found) == 1:
        text = _described(names[0], found[0]["params"])
    out.result(found, text)


def _marked(head: Mapping[str, Any]) -> str:
    return f"{head['name']}{' *' if head['transductive'] else ''}"


def _kinds(kinds: Collection[str]) -> str:
    from clipadapter.heads.registry import FIDELITY_KINDS

    return "\n".join(f"{kind}: {meaning}" for kind, meaning in FIDELITY_KINDS.items() if kind in kinds)


def _described(name: str, params: Mapping[str, Any]) -> str:
    """The docstring without its example, the fidelity, the defaults, the recipes and the presets."""
    from clipadapter.heads import fidelity_of, head_info

    cls, fidelity = head_info(name).cls, fidelity_of(name)
    words = inspect.cleandoc(cls.__doc__ or "").partition("\n\nFidelity: ")[0].partition(">>>")[0].strip()
    defaults = f"\n\nDefaults:\n{facts(list(params.items()))}" if params else ""
    recipes = f"\n\nRecipes (--recipe): {', '.join(cls.recipes())}" if cls.recipes() else ""
    presets = f"\n\nPresets: {', '.join(sorted(cls.presets))}\n{cls.preset_note}" if cls.presets else ""
    return f"{name}: {words}\n\nFidelity ({fidelity.kind}): {fidelity}{defaults}{recipes}{presets}"
