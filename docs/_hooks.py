"""What the site takes from the code while it is built, so that it can't go stale: commands, heads, encoders, formats.

Pages may link to pictures that lie outside ``docs/``; those are carried along.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

OUTSIDE = re.compile(r"\]\(\.\./(benchmarks/[^)#]+)")
"""A link from a page of ``docs/`` itself to a file beside that folder."""
CODE = re.compile(r"`[^`]+`")
WIDTH = 80
FIRST = ("auto", "clip-adapter", "linear-probe", "zero-shot")
"""The heads to begin with: the default, the method of the paper, and the two baselines."""
KINDS = {
    "To begin with": "`auto`, the default, mixes class text with classifiers of the shots. `clip-adapter` is the "
    "method of the paper that this project is about. `linear-probe` and `zero-shot` are the baselines of comparisons.",
    "Trained on features": "Seconds on a CPU.",
    "Without training": "Closed forms, means and caches of shots.",
    "With a second encoder": "Named by a second `--encoder`; `auto` takes any number of encoders too.",
    "With the pictures to classify": "They learn from these pictures, without labels. Tables mark them with *.",
    "Incremental": "They learn tasks one after the other. `compare` and `bench` take them only if they are named.",
    "Trained through a tower": "They learn prompts or change weights. `compare` and `bench` take them only if named.",
}
"""The kinds of heads in the order of the page, each with a sentence."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and the pictures that pages speak of."""
    for name, make in {"commands": commands, "heads": heads, "encoders": encoders, "formats": formats}.items():
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    root = Path(config.docs_dir).parent
    files.append(File.generated(config, "security.md", content=security(root)))
    for page in files.documentation_pages():
        for name in OUTSIDE.findall(page.content_string):
            if files.get_file_from_path(name) is None and (root / name).is_file():
                files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **unused: Any) -> str:
    """Links to what was carried along; a stroke in the code of a table, which other readers want escaped."""
    lines = OUTSIDE.sub(r"](\1", markdown).split("\n")
    return "\n".join(CODE.sub(_unescaped, line) if line.startswith("|") else line for line in lines)


def _unescaped(code: re.Match[str]) -> str:
    return code[0].replace("\\|", "|")


def security(root: Path) -> str:
    """SECURITY.md, which lies where people look for it, with links as from ``docs/``."""
    return (root / "SECURITY.md").read_text(encoding="utf-8").replace("](docs/", "](")


def commands() -> str:
    """Each command's own help."""
    from clipadapter.cli.app import app

    parts = ["# Commands", "What `--help` says of each."]
    for name, command in [("clipadapter", app), *_below("clipadapter", app)]:
        context = click.Context(command, info_name=name, max_content_width=WIDTH, terminal_width=WIDTH)
        depth = "##" if name.count(" ") < 2 else "###"
        parts.append(f"{depth} {name}\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts) + "\n"


def _below(name: str, group: click.Command) -> Iterator[tuple[str, click.Command]]:
    if isinstance(group, click.Group):
        context = click.Context(group)
        for word in group.list_commands(context):
            command = group.get_command(context, word)
            if command is not None:
                yield f"{name} {word}", command
                yield from _below(f"{name} {word}", command)


def heads() -> str:
    """One line per head, from the registry, by kind."""
    from clipadapter.heads import fidelity_of, head_info, list_heads
    from clipadapter.heads.registry import FIDELITY_KINDS

    rows: dict[str, list[list[str]]] = {kind: [] for kind in KINDS}
    faithful = []
    names = [*FIRST, *(name for name in list_heads() if name not in FIRST)]
    for name in sorted(names, key=lambda name: list(KINDS).index(_kind_of_head(name, head_info(name)))):
        entry = head_info(name)
        paper = entry.facts.get("paper")
        taken = [word for word, holds in _traits(entry.cls).items() if holds]
        head, fidelity = f"[`{name}`]({paper})" if paper else f"`{name}`", fidelity_of(name)
        takes = f" Takes {', '.join(taken)}." if taken else ""
        rows[_kind_of_head(name, entry)].append([head, entry.summary + takes])
        faithful.append([head, f"**{fidelity.kind}**: {fidelity.statement}"])
    titles = ["head, and its paper", "what it is"]
    by_kind = "\n\n".join(f"## {kind}\n\n{KINDS[kind]}\n\n{_table(titles, rows[kind])}" for kind in KINDS)
    kinds = "\n".join(f"- **{kind}**: {meaning}" for kind, meaning in FIDELITY_KINDS.items())
    return f"""# Heads

Which to take: [Which head](../guides/which-head.md). `clipadapter heads` lists all, and `clipadapter heads NAME` shows
the parameters of one. What a head takes:

- **class text**: can't do without class names and an encoder that has a text tower; others use them if they are there.
- **several labels**: also learns from pictures with several labels, or none.
- **unlabelled pictures**: sees the pictures to classify when it is fitted (`--unlabelled`); `auto` does without
  them too.
- **a tower**: trains through the text tower or changes the image tower; minutes to hours on a CPU.

{by_kind}

## Fidelity

How close each head is to the publication that it is named after.

{kinds}

{_table(["head, and its paper", "what was checked, and what is not as published"], faithful)}
"""


def _kind_of_head(name: str, entry: Any) -> str:
    """The title of the part of the page that a head belongs to, by what its class declares."""
    from clipadapter.heads import default_parameters

    start, trained, plain, second, transductive, incremental, tower = KINDS
    traits = _traits(entry.cls)
    if name in FIRST:
        return start
    if traits["a tower"]:
        return tower
    if entry.cls.transductive:
        return transductive
    if traits["a second encoder"]:
        return second
    if entry.facts.get("compare") is False:
        return incremental
    return trained if {"epochs", "steps", "solver"} & default_parameters(name).keys() else plain


def _traits(cls: Any) -> dict[str, bool]:
    return {
        "class text": cls.needs_text,
        "several labels": cls.multilabel,
        "unlabelled pictures": cls.transductive or cls.accepts_unlabelled,
        "a second encoder": cls.reads == "second-encoder",
        "a tower": cls.needs_tower or cls.tunes_encoder or cls.reads == "unprojected",
    }


def encoders() -> str:
    """The groups of encoders, then all others that can be named without a path."""
    from clipadapter.encoders.catalogue import EncoderListing, list_known, read_groups

    def rows(listings: Sequence[EncoderListing]) -> str:
        return _table(["encoder", "facts", "licence of the weights", "note"], [_encoder_row(one) for one in listings])

    listings = {one.name: one for one in list_known()}
    parts = [
        "# Encoders",
        "What `clipadapter encoders` lists. Which to take: [Which encoder](../guides/which-encoder.md).",
    ]
    for group in read_groups():
        parts += [f"## {group.title}", rows([listings.pop(name) for name in group.encoders if name in listings])]
        parts += [group.about] if group.about else []
    return "\n\n".join([*parts, "## All others", rows(list(listings.values()))]) + "\n"


def _encoder_row(listing: Any) -> list[str]:
    facts = [
        f"{listing.parameters / 1e6:.0f} M parameters" if listing.parameters else "",
        f"{listing.image_size} pixels" if listing.image_size else "",
        f"width {listing.dim}" if listing.dim else "",
        listing.text,
    ]
    licence = ("" if "own" in listing.groups else "see model card") if listing.licence == "unknown" else listing.licence
    return [f"`{listing.name}`", ", ".join(filter(None, facts)), licence, listing.note]


def formats() -> str:
    """One row per format of exported models."""
    from clipadapter.runtime.engines.formats import list_openers, load_formats

    rows = []
    for export_format in load_formats().values():
        suffixes = ", ".join(f"`{s}`" for s in (export_format.suffix, *export_format.companion_suffixes))
        backends = ", ".join(f"`{name}`" for name in list_openers(export_format.name))
        install = f"`pip install '.[{export_format.extra}]'`"
        precisions = ", ".join(export_format.precisions)
        rows.append([f"`{export_format.name}`", export_format.summary, suffixes, precisions, backends, install])
    return f"""# Export formats

The formats of `clipadapter export --format`. What is in a file: [Export](../export.md).

{_table(["format", "what it is", "files", "precision", "run by", "needed to write it"], rows)}
"""


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
