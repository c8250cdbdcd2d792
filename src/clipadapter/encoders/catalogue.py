"""What is known of encoders without opening one: lists, groups, licences, and the names that come near a wrong one.

It needs neither torch nor open_clip nor timm, which take seconds to import. ``open_clip_models.json`` and
``timm_models.json`` are written by scripts of their names, ``scripts/make_open_clip_models.py`` and
``scripts/make_timm_models.py``; ``catalogue.toml`` is written by hand, with the source of every licence.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clipadapter.errors import UnknownNameError
from clipadapter.utils.parsing import parse_json, parse_toml

MODELS_FILE = Path(__file__).with_name("open_clip_models.json")
TIMM_MODELS_FILE = Path(__file__).with_name("timm_models.json")
CATALOGUE_FILE = Path(__file__).with_name("catalogue.toml")
UNKNOWN_LICENCE = "unknown"
QUICK_GELU = "-quickgelu"  # how open_clip ends the name of an architecture with the QuickGELU activation
NO_TEXT = "no texts"
MAX_SUGGESTIONS = 3
MIN_SIMILARITY = 0.5
MIN_PART_LENGTH = 3  # characters that a part of a name must have to be looked for


@dataclass(frozen=True)
class EncoderListing:
    """One line of ``clipadapter encoders``: the facts that are known without opening the towers.

    Args:
        name: URI.
        dim: feature width, or None if not known before opening.
        licence: licence of the weights, or "unknown".
        note: purpose of the encoder.
        parameters: number of parameters of both towers, or None if not known.
        image_size: side of the square input in pixels, or None if not known.
        text: rules for texts, such as "77 tokens, lower case"; may be empty.
        groups: names of the groups that recommend it.
    """

    name: str
    dim: int | None
    licence: str
    note: str = ""
    parameters: int | None = None
    image_size: int | None = None
    text: str = ""
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Encoders that are good for one purpose."""

    name: str
    title: str  # what they are good for
    about: str  # what to know before taking one; may be empty
    encoders: Mapping[str, str]  # URIs, each with its note


@dataclass(frozen=True)
class KnownModel:
    """Facts about an architecture of open_clip."""

    dim: int
    image_size: int
    parameters: int | None  # of both towers; None for text towers of the library transformers
    text: str  # the rules for texts in words
    tags: Mapping[str, str]  # names of its pretrained weights, each with its repository on the hub


def list_known() -> list[EncoderListing]:
    """All encoders that are known without importing torch: recommended ones first, then every model of open_clip."""
    recommended = {uri: _listing(uri) for group in read_groups() for uri in group.encoders}
    others = {f"open_clip:{model}/{tag}" for model, facts in read_models().items() for tag in facts.tags}
    return [*recommended.values(), *(_listing(uri) for uri in sorted(others - set(recommended), key=str.lower))]


def list_timm() -> list[EncoderListing]:
    """All pretrained models of timm: more than a thousand, so they are not part of `list_known`."""
    return [_listing(f"timm:{model}") for model in _content(TIMM_MODELS_FILE)["models"]]


def match_listings(pattern: str, listings: Sequence[EncoderListing]) -> list[EncoderListing]:
    """The encoders whose URI matches a shell wildcard, or contains a text without wildcards, in any case of letters."""
    wanted = pattern.lower().replace(f"{QUICK_GELU}/", "/")
    matching = [one for one in listings if fnmatch.fnmatchcase(one.name.lower(), wanted)]
    if not matching and not set("*?[") & set(wanted):
        matching = [one for one in listings if len(wanted) >= MIN_PART_LENGTH and wanted in one.name.lower()]
    if not matching:
        near = suggest(wanted.strip("*"), [one.name for one in listings])
        raise UnknownNameError(f"no encoder matches '{pattern}'.{near} 'clipadapter encoders \"*\"' lists all")
    return matching


def suggest(name: str, known: Sequence[str]) -> str:
    """A sentence that asks whether one of the nearest known names was meant; empty if none comes near.

    >>> suggest("ViT-B32", ["RN50", "ViT-B-32", "ViT-L-14"])
    " Did you mean 'ViT-B-32'?"
    """
    lower = {one.lower(): one for one in reversed(known)}
    close = difflib.get_close_matches(name.lower(), list(lower), n=MAX_SUGGESTIONS, cutoff=MIN_SIMILARITY)
    best = [lower[one] for one in close if _similarity(name, one) > 0.9 * _similarity(name, close[0])]
    return f" Did you mean {' or '.join(repr(one) for one in best)}?" if best else ""


def unknown_encoder(uri: str, schemes: Sequence[str]) -> UnknownNameError:
    """The error for a URI without a known scheme: a model of open_clip may be named without it, or a repository."""
    names = [one.name for one in list_known()]
    variants = {name: name.partition(":")[2].lower() for name in names}
    same = find_repository_name(uri) or next((name for name in names if variants[name] == uri.lower()), None)
    containing = [name for name in names if len(uri) >= MIN_PART_LENGTH and uri.lower() in variants[name]]
    if same:
        hint = f": say {same}."
    elif any(uri in (name, name.partition(".")[0]) for name in _content(TIMM_MODELS_FILE)["models"]):
        hint = f": say timm:{uri} for the model of timm."
    elif Path(uri).is_dir():
        hint = f": say open_clip:local-dir:{uri} for a folder with a model of open_clip."
    elif containing:
        hint = f". Did you mean {' or '.join(repr(name) for name in containing[:MAX_SUGGESTIONS])}?"
    elif re.fullmatch(r"[\w-]+/[\w.-]+", uri):
        hint = f": say hf-hub:{uri} for a repository of the hub."
    else:
        hint = f".{suggest(uri, schemes) or suggest(uri, names)}"
    return UnknownNameError(f"no encoder is called '{uri}'{hint} 'clipadapter encoders' lists them")


def find_repository_name(repo: str) -> str | None:
    """The URI by which open_clip opens the weights of a repository of the hub; None if it is not known."""
    names = (
        f"open_clip:{name}/{tag}" for name, its in read_models().items() for tag in its.tags if its.tags[tag] == repo
    )
    return _content(CATALOGUE_FILE)["converted"].get(repo) or next(names, None)


def check_pretrained(model: str, tag: str) -> None:
    """Refuse a name of pretrained weights that open_clip does not have, if its installed release is the known one."""
    if not names_are_current():
        return
    known = {name: list(facts.tags) for name, facts in read_models().items() if facts.tags}
    name = model.replace("/", "-")
    plain = name.removesuffix(QUICK_GELU)
    if plain not in known:
        raise _unknown(f"open_clip has no pretrained model '{name}'", plain, list(known), "open_clip:*")
    if tag.lower().replace("-", "_") not in known[plain]:
        raise _unknown(f"'{plain}' has no weights '{tag}'", tag, known[plain], f"open_clip:{plain}/*")


def check_timm_model(model: str, needs_weights: bool = True) -> None:
    """Refuse the name of a model that the installed timm does not have; see `check_pretrained`."""
    tagged, untrained = (_content(TIMM_MODELS_FILE)[key] for key in ("models", "untrained"))
    name, _, tag = model.partition(".")
    weights = [one for one in tagged if one.partition(".")[0] == name]
    is_known = model in tagged or (weights and not tag) or (not weights and name in untrained and not needs_weights)
    if is_known or not names_are_current("timm"):
        return
    if weights:
        raise _unknown(f"timm has no weights '{model}'", model, weights, f"timm:{name}.*")
    if name in untrained:
        raise UnknownNameError(f"timm has no weights of '{name}': say timm:{name}:FILE")
    known = dict.fromkeys([*(one.partition(".")[0] for one in tagged), *([] if needs_weights else untrained)])
    raise _unknown(f"timm has no model '{name}'", name, list(known), "timm:*")


def _unknown(problem: str, name: str, known: Sequence[str], pattern: str) -> UnknownNameError:
    listed = f"'clipadapter encoders \"{pattern}\"' lists those with weights"
    return UnknownNameError(f"{problem}.{suggest(name, known)} {listed}")


def names_are_current(library: str = "open_clip") -> bool:
    """Whether the known names of "open_clip" or "timm" are those of its installed release, or none is installed."""
    file, package = (TIMM_MODELS_FILE, "timm") if library == "timm" else (MODELS_FILE, "open_clip_torch")
    try:
        return bool(version(package) == _content(file)[library])
    except PackageNotFoundError:
        return True


def find_licence(repo: str) -> str:
    """Licence of the weights in a repository of the hub as their makers state it, or "unknown"."""
    entries = _content(CATALOGUE_FILE)["licences"]
    return next((each["licence"] for each in entries if fnmatch.fnmatchcase(repo, each["repo"])), UNKNOWN_LICENCE)


@cache
def read_models() -> Mapping[str, KnownModel]:
    """All architectures of open_clip, without the second names for QuickGELU."""
    return {name: KnownModel(**facts) for name, facts in _content(MODELS_FILE)["models"].items()}


@cache
def read_groups() -> tuple[Group, ...]:
    """The groups of encoders, in the order in which they are shown."""
    return tuple(Group(**group) for group in _content(CATALOGUE_FILE)["groups"])


@cache
def read_hardware() -> Mapping[str, Mapping[str, str]]:
    """Encoders by hardware: URIs, each with the reason."""
    return {entry["title"]: entry["encoders"] for entry in _content(CATALOGUE_FILE)["hardware"]}


def _listing(uri: str) -> EncoderListing:
    """What is known of an encoder."""
    notes = [(group.name, group.encoders[uri]) for group in read_groups() if uri in group.encoders]
    stated = dict(_content(CATALOGUE_FILE)["encoders"].get(uri, {}))
    scheme, _, variant = uri.partition(":")
    model, _, tag = variant.rpartition("/")
    repo = variant if scheme == "hf-hub" else ""
    facts = read_models().get(stated.pop("architecture", model if scheme == "open_clip" else ""))
    known: dict[str, Any] = {"dim": None, "licence": UNKNOWN_LICENCE}
    if facts is not None:
        known |= {"dim": facts.dim, "parameters": facts.parameters, "image_size": facts.image_size, "text": facts.text}
        repo = repo or facts.tags.get(tag, "")
    known["licence"] = find_licence(repo)
    if scheme == "timm" and variant in _content(TIMM_MODELS_FILE)["models"]:
        known |= {**_content(TIMM_MODELS_FILE)["models"][variant], "text": NO_TEXT}
    note = next((text for _, text in notes if text), "")
    return EncoderListing(uri, **{**known, "note": note, "groups": tuple(name for name, _ in notes), **stated})


def _similarity(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()


@cache
def _content(file: Path) -> dict[str, Any]:
    parse = parse_toml if file.suffix == ".toml" else parse_json
    return parse(file.read_text(encoding="utf-8"), file.name)
