"""``clipadapter heads``, ``encoders`` and ``version``: what there is to use."""

from __future__ import annotations

import inspect
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from clipadapter.cli.declarations import argument, cli_command
from clipadapter.cli.output import Fact, Output, facts, table
from clipadapter.encoders.catalogue import EncoderListing, list_timm, match_listings, read_groups, read_hardware
from clipadapter.encoders.registry import TEST_SCHEME, encoder_info, list_listings
from clipadapter.heads import default_parameters, fidelity_of, head_info
from clipadapter.heads.registry import FIDELITY_KINDS, HEADS, Fidelity
from clipadapter.rendering.tables import NOT_AS_PUBLISHED
from clipadapter.utils.files import default_cache_dir
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
    rows, kinds, marks = [], set[str](), ""
    for head in map(HEADS.info, HEADS.list(pattern)):
        stated, traits = Fidelity.of(head.docstring, head.facts), head.attributes
        mark = "*" if traits.get("transductive") else "+" if traits.get("accepts_unlabelled") else ""
        mark += "" if stated.is_as_published else NOT_AS_PUBLISHED
        rows.append([f"{head.name} {mark}".strip(), stated.kind, head.summary])
        kinds.add(stated.kind)
        marks += mark
    meanings = [f"{kind}: {meaning}" for kind, meaning in FIDELITY_KINDS.items() if kind in kinds]
    notes = [f"{mark} {note}" for mark, note in MARKS.items() if mark in marks]
    parts = [table(["head", "fidelity", "summary"], rows), "\n".join(meanings), "\n".join(notes)]
    return "\n\n".join(filter(None, parts))


def _describe_head(name: str) -> str:
    """Return the docstring without its example, the fidelity, the defaults, the recipes and the presets."""
    cls, fidelity, params = head_info(name).cls, fidelity_of(name), default_parameters(name)
    docstring = inspect.cleandoc(cls.__doc__ or "").partition("\n\nFidelity: ")[0]
    description = re.sub(r"^>>> .*(?:\n.+)*\n*", "", docstring, flags=re.MULTILINE).strip()
    defaults = f"\n\nDefaults:\n{facts(list(params.items()))}" if params else ""
    recipes = f"\n\nRecipes (--recipe): {', '.join(cls.recipes)}" if cls.recipes else ""
    presets = f"\n\nPresets: {', '.join(sorted(cls.presets))}\n{cls.preset_note}" if cls.presets else ""
    return f"{name}: {description}\n\nFidelity ({fidelity.kind}): {fidelity}{defaults}{recipes}{presets}"


COLUMNS = ("parameters", "fp32", "pixels", "width", "licence", "texts", "note")
BYTES_PER_PARAMETER = 4  # in fp32
FORMS_OF_OWN = "own"  # group of the forms of a URI of one's own weights, of which no facts are known


@cli_command("clipadapter encoders 'open_clip:ViT-B*'")
def encoders(out: Output, pattern: str = argument(default="")) -> None:
    """List the encoders by what they are good for, or all whose URI matches PATTERN, such as '*siglip2*'.

    Columns: parameters of both towers, their size in fp32, side of the pictures in pixels, width of the features,
    licence of the weights, how long texts may be and what is removed from them. A percentage is the published zero-shot
    accuracy on ImageNet. No encoder is loaded. '*' lists all. The models of timm are listed for a PATTERN that begins
    with 'timm:' or has wildcards.
    """
    listings = encoder_info(TEST_SCHEME).cls.listing() if pattern == TEST_SCHEME else list_listings()
    if pattern:
        if pattern.lower().startswith("timm:") or set("*?[") & set(pattern):
            listings = list({one.name: one for one in [*listings, *list_timm()]}.values())
        matching = match_listings(pattern, listings)
        out.result([asdict(one) for one in matching], _table("encoder", matching))
        return
    by_name = {one.name: one for one in listings}
    parts = []
    for group in read_groups():
        members = [by_name[uri] for uri in group.encoders]
        if group.name == FORMS_OF_OWN:
            parts.append(table((group.title.upper(), "note"), [(one.name, one.note) for one in members]))
        else:
            parts.append("\n".join([_table(group.title.upper(), members), *([group.about] if group.about else [])]))
    rows = [(title, *one) for title, weights in read_hardware().items() for one in weights.items()]
    parts.append(table(("BY HARDWARE", "encoder", "weights in fp32"), rows))
    parts.append("%: published zero-shot accuracy on ImageNet. 'clipadapter encoders \"*\"' lists all encoders.")
    out.result([asdict(one) for one in listings], "\n\n".join(parts))


def _table(title: str, listings: Sequence[EncoderListing]) -> str:
    rows = []
    for one in listings:
        n, is_own = one.parameters, FORMS_OF_OWN in one.groups
        size = ("-", "-") if n is None else (f"{n / 1e6:.0f} M", f"{n * BYTES_PER_PARAMETER / 1e9:.1f} GB")
        licence = one.licence if one.licence != "unknown" else "-" if is_own else "see model card"
        rows.append((one.name, *size, one.image_size or "-", one.dim or "-", licence, one.text or "-", one.note))
    return table((title, *COLUMNS), rows)


PACKAGES = ("clipadapter", "torch", "open_clip_torch", "scikit-learn", "onnxruntime", "openvino")


@cli_command("clipadapter version --json")
def version(out: Output) -> None:
    """Show the versions of the main packages, and the cache folder."""
    own, *others = ((name, _version(name)) for name in PACKAGES)
    pairs = [own, ("python", platform.python_version()), *others, ("cache", str(default_cache_dir()))]
    out.facts([Fact(name, value, value, name) for name, value in pairs])


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
