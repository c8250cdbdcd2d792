"""Prompts of the classes: templates, cleaned class names, and descriptions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipadapter.errors import DataError, InputError, brief
from clipadapter.utils.files import printable
from clipadapter.utils.formatting import MAX_NAME_LETTERS
from clipadapter.utils.parsing import read_json
from clipadapter.utils.registry import unknown

MAX_SENTENCES = 1_000
"""Sentences that describe a class. Published lists have 50; each takes as long to encode as a class name."""
_PHOTO = ("a photo of a {}.",)

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "default": _PHOTO,
    "caltech101": _PHOTO,
    "dtd": ("{} texture.",),
    "eurosat": ("a centered satellite photo of {}.",),
    "fgvc_aircraft": ("a photo of a {}, a type of aircraft.",),
    "food101": ("a photo of {}, a type of food.",),
    "imagenet": _PHOTO,
    "imagenet7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "oxford_flowers": ("a photo of a {}, a type of flower.",),
    "oxford_pets": ("a photo of a {}, a type of pet.",),
    "stanford_cars": _PHOTO,
    "sun397": _PHOTO,
    "ucf101": ("a photo of a person doing {}.",),
}
"""Template sets by name: one per data set of the few-shot CLIP papers; `imagenet7` is CLIP's set of seven."""

_CAMEL = re.compile(r"([A-Z][a-z]{2,}){2,}")


def clean_name(name: str) -> str:
    """Turn a folder name into words: underscores become spaces, CamelCase is split.

    Names that only resemble CamelCase are kept.

    >>> [clean_name(name) for name in ("water_lilly", "AnnualCrop", "iPhone", "BMW X5", "McLaren")]
    ['water lilly', 'Annual Crop', 'iPhone', 'BMW X5', 'McLaren']
    """
    if _CAMEL.fullmatch(name):
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(name.replace("_", " ").split()) or name


def list_templates() -> list[str]:
    """Names of the template sets, sorted."""
    return sorted(TEMPLATES)


def get_templates(spec: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of a set by its name, or the given texts, which must have one ``{}`` each.

    Args:
        spec: a name or a text, or a list of them.

    Raises:
        UnknownNameError: if no set has the name.
        InputError: if a text does not have exactly one ``{}``, or the list is empty.

    >>> get_templates("dtd")
    ('{} texture.',)
    >>> get_templates(["a sketch of a {}.", "dtd"])
    ('a sketch of a {}.', '{} texture.')
    """
    specs = [spec] if isinstance(spec, str) else list(spec)
    if not specs:
        raise InputError("no template was given: give the name of a set, or a text such as 'a photo of a {}.'")
    return tuple(template for one in specs for template in _templates(one))


def _templates(spec: str) -> tuple[str, ...]:
    if spec in TEMPLATES:
        return TEMPLATES[spec]
    holes = spec.count("{}")
    if holes == 1:
        return (spec,)
    if holes == 0 and re.fullmatch(r"[\w-]+", spec):
        raise unknown("template set", spec, list_templates())
    raise InputError(f"the template '{spec}' has {holes} placeholders for the class name, not one: write {{}} once")


def check_class_names(names: Iterable[str]) -> None:
    """Refuse class names with line breaks, tabs and other control characters, which folders get by mistake."""
    # No prompt needs them, they break every table and list of classes, and some change what a terminal shows.
    for name in names:
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            shown = ascii(name if len(name) <= MAX_NAME_LETTERS else f"{name[:MAX_NAME_LETTERS]}...")
            raise InputError(f"the class name {shown} has a line break or another control character: rename the class")


def class_prompts(
    class_names: Sequence[str],
    templates: str | Sequence[str] = "default",
    descriptions: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, list[str]]:
    """Make the prompts of each class: its descriptions if it has any, else every template with its cleaned name.

    Args:
        class_names: unique names.
        templates: as for `get_templates`.
        descriptions: sentences by class name or cleaned class name.

    Raises:
        UnknownNameError: if a key of the descriptions is not a class, or a template set is unknown.
        InputError: if a class name occurs twice or is empty, a template is wrong, or a class has no sentence.

    >>> class_prompts(["water_lilly", "cup"], descriptions={"cup": ["a cup holds a drink"]})
    {'water_lilly': ['a photo of a water lilly.'], 'cup': ['a cup holds a drink']}
    """
    texts = get_templates(templates)
    check_class_names(class_names)
    for name, count in Counter(class_names).items():
        if count > 1 or not name.strip():
            raise InputError(f"class names must be unique and not empty; got '{name}' {count} times")
    described = _match_descriptions(class_names, descriptions or {})
    return {
        name: described.get(name) or [text.replace("{}", clean_name(name)) for text in texts] for name in class_names
    }


def _match_descriptions(class_names: Sequence[str], descriptions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    known = {clean_name(name): name for name in class_names} | {name: name for name in class_names}
    described: dict[str, list[str]] = {}
    for key, sentences in descriptions.items():
        if key not in known:
            raise unknown("class", key, list(class_names))
        if isinstance(sentences, str) or not sentences:
            raise InputError(f"the descriptions of '{key}' must be a list of at least one sentence")
        described.setdefault(known[key], []).extend(sentences)
    for name, texts in described.items():
        if len(texts) > MAX_SENTENCES:
            raise InputError(
                f"the class '{name}' has {len(texts):,} descriptions, but at most {MAX_SENTENCES:,} are encoded: leave "
                "some out"
            )
    return described


def read_descriptions(path: str | Path) -> dict[str, list[str]]:
    """Read descriptions from a JSON file in CuPL's format, ``{"cup": ["A cup holds a drink.", ...], ...}``.

    Raises:
        DataError: if the file can't be read or has another format.
    """
    descriptions = _read_object(path, 'expected {"class": ["sentence", ...], ...}')
    for key, value in descriptions.items():
        if not (isinstance(value, list) and value and all(isinstance(text, str) and text.strip() for text in value)):
            raise DataError(f"{printable(path)}: '{key}' must be a list of at least one sentence")
    return descriptions


def read_class_names(path: str | Path) -> dict[str, str]:
    """Read readable class names from a JSON file, ``{"n02123045": "tabby cat", ...}``, for `Dataset.rename`.

    Raises:
        DataError: if the file can't be read or has another format.
    """
    names = _read_object(path, 'expected {"folder": "readable name", ...}')
    for key, value in names.items():
        if not (isinstance(value, str) and value.strip()):
            raise DataError(f"{printable(path)}: '{key}' must have a string as its name, got {brief(value)}")
    return names


def _read_object(path: str | Path, expected: str) -> dict[str, Any]:
    content = read_json(path, expected)
    if not isinstance(content, dict) or not content:
        actual = "an empty object" if content == {} else type(content).__name__
        raise DataError(f"{printable(path)}: {expected}, got {actual}")
    return content
