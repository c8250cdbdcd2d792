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
            "params": {key: part.default for key, part in inspect.signature(entry.cls).parameters.items()},
            **entry.facts,
        }
        for name, entry in ((name, head_info(name)) for name in names)
    ]
    text = table(["head", "what it is"], [[head["name"], head["summary"]] for head in found])
    if len(found) == 1:
        text = _described(names[0], found[0]["params"])
    out.result(found, text)


def _described(name: str, params: Mapping[str, Any]) -> str:
    """The docstring without its example, and the defaults."""
    from clipadapter.heads import head_info

    words = inspect.cleandoc(head_info(name).cls.__doc__ or "").partition(">>>")[0].strip()
    return f"{name}: {words}" + (f"\n\nDefaults:\n{facts(list(params.items()))}" if params else "")
