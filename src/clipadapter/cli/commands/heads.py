"""``clipadapter heads``."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

import click

from clipadapter.cli.groups import Section, cli_command
from clipadapter.cli.options import output_options
from clipadapter.cli.output import Output, facts, table
from clipadapter.registry import unknown
from clipadapter.rendering.marks import TRANSDUCTIVE


@cli_command("clipadapter heads 'clip-*'", Section.INSPECT, 2)
@click.argument("pattern", default="*")
@output_options
def command(pattern: str, out: Output) -> None:
    """List the heads, or those whose name matches PATTERN.

    If only one name matches, its description and its parameters (for --set of other commands) are shown. The fidelity
    says how close a head is to the publication that it is named after.
    """
    from clipadapter.heads import default_parameters, fidelity_of, head_info, list_heads

    names = list_heads(pattern)
    if not names:
        raise unknown("head", pattern, list_heads())
    entries = [
        {
            "name": name,
            "summary": entry.summary,
            "needs_text": entry.cls.needs_text,
            "transductive": entry.cls.transductive,
            "recipes": list(entry.cls.recipes()),
            "presets": {key: dict(values) for key, values in entry.cls.presets.items()},
            "preset_note": entry.cls.preset_note if entry.cls.presets else None,
            "params": default_parameters(name),
            **entry.facts,
            "fidelity": asdict(fidelity_of(name)),
        }
        for name, entry in ((name, head_info(name)) for name in names)
    ]
    rows = [[_name_with_mark(head), head["fidelity"]["kind"], head["summary"]] for head in entries]
    kinds = _describe_kinds({row[1] for row in rows})
    text = f"{table(['head', 'fidelity', 'summary'], rows)}\n\n{kinds}"
    if any(head["transductive"] for head in entries):
        text += f"\n\n{TRANSDUCTIVE} transductive: uses the pictures to classify when it is fitted"
    if len(entries) == 1:
        text = _describe_head(names[0], entries[0]["params"])
    out.result(entries, text)


def _name_with_mark(head: Mapping[str, Any]) -> str:
    return f"{head['name']}{f' {TRANSDUCTIVE}' if head['transductive'] else ''}"


def _describe_kinds(kinds: Collection[str]) -> str:
    from clipadapter.heads.registry import FIDELITY_KINDS

    return "\n".join(f"{kind}: {meaning}" for kind, meaning in FIDELITY_KINDS.items() if kind in kinds)


def _describe_head(name: str, params: Mapping[str, Any]) -> str:
    """Return the docstring without its example, the fidelity, the defaults, the recipes and the presets."""
    from clipadapter.heads import fidelity_of, head_info

    cls, fidelity = head_info(name).cls, fidelity_of(name)
    description = inspect.cleandoc(cls.__doc__ or "").partition("\n\nFidelity: ")[0].partition(">>>")[0].strip()
    defaults = f"\n\nDefaults:\n{facts(list(params.items()))}" if params else ""
    recipes = f"\n\nRecipes (--recipe): {', '.join(cls.recipes())}" if cls.recipes() else ""
    presets = f"\n\nPresets: {', '.join(sorted(cls.presets))}\n{cls.preset_note}" if cls.presets else ""
    return f"{name}: {description}\n\nFidelity ({fidelity.kind}): {fidelity}{defaults}{recipes}{presets}"
