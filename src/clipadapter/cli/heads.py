"""``clipadapter heads``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import click

from clipadapter.cli._options import output_options
from clipadapter.cli._output import Output, facts, table
from clipadapter.registry import unknown


@click.command(epilog="Example: clipadapter heads 'clip-*'")
@click.argument("pattern", default="*")
@output_options
def command(pattern: str, out: Output) -> None:
    """List the heads, or those whose name matches PATTERN.

    If only one does, its description and its parameters, for --set of other commands, are shown too.
    """
    from clipadapter.heads import head_info, list_heads

    names = list_heads(pattern)
    if not names:
        raise unknown("head", pattern, list_heads())
    found = [
        {
            "name": name,
            "summary": entry.summary,
            "needs_text": entry.cls.needs_text,
            "transductive": entry.cls.transductive,
            "presets": {key: dict(values) for key, values in entry.cls.presets.items()},
            "preset_note": entry.cls.preset_note if entry.cls.presets else None,
            "params": {key: part.default for key, part in inspect.signature(entry.cls).parameters.items()},
            **entry.facts,
        }
        for name, entry in ((name, head_info(name)) for name in names)
    ]
    text = table(["head", "what it is"], [[_marked(head), head["summary"]] for head in found])
    if any(head["transductive"] for head in found):
        text += "\n\n* transductive: sees the pictures to classify when it is fitted"
    if len(found) == 1:
        text = _described(names[0], found[0]["params"])
    out.result(found, text)


def _marked(head: Mapping[str, Any]) -> str:
    return f"{head['name']}{' *' if head['transductive'] else ''}"


def _described(name: str, params: Mapping[str, Any]) -> str:
    """The docstring without its example, and the defaults."""
    from clipadapter.heads import head_info

    words = inspect.cleandoc(head_info(name).cls.__doc__ or "").partition(">>>")[0].strip()
    cls = head_info(name).cls
    presets = f"\n\nPresets: {', '.join(sorted(cls.presets))}\n{cls.preset_note}" if cls.presets else ""
    return f"{name}: {words}" + (f"\n\nDefaults:\n{facts(list(params.items()))}" if params else "") + presets
