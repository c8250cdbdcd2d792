"""The sentence bank: templates by domain, from which sentences about classes are written without a language model.

Each domain is one TOML file here, ``NAME.toml``, with a ``title`` and the list ``sentences``; each sentence has one
``{}`` for the class name. The sentences state what pictures of the domain look like, and nothing about a single class:
what distinguishes classes, a person or a language model must add. The result has the form of CuPL (Pratt et al.,
ICCV 2023, https://arxiv.org/abs/2209.03320), which `read_descriptions` reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from clipadapter.data.prompts import class_prompts, clean_name
from clipadapter.errors import InputError
from clipadapter.utils.parsing import parse_toml
from clipadapter.utils.registry import unknown

ARTICLE = re.compile(r"\b([Aa]) \{\}")  # an article before the class name
VOWELS = "aeiou"


@dataclass(frozen=True)
class Domain:
    """A domain of the sentence bank.

    Args:
        name: of the domain.
        title: what its pictures show.
        sentences: templates, each with one ``{}``.
    """

    name: str
    title: str
    sentences: tuple[str, ...]


@cache
def _domains() -> dict[str, Domain]:
    domains = {}
    for file in sorted(files(__name__).iterdir(), key=lambda item: item.name):
        if file.name.endswith(".toml"):
            name = file.name.removesuffix(".toml")
            fields = parse_toml(file.read_text(encoding="utf-8"), file.name)
            domains[name] = Domain(name, fields["title"], tuple(fields["sentences"]))
    return domains


def list_domains() -> list[Domain]:
    """The domains of the sentence bank, sorted by name."""
    return list(_domains().values())


def get_domain(name: str) -> Domain:
    """A domain by its name.

    Raises:
        UnknownNameError: if no domain has the name.

    >>> get_domain("foods")
    Traceback (most recent call last):
    ...
    clipadapter.errors.UnknownNameError: no domain is called 'foods'. Did you mean 'food'? Known: ...
    """
    if name not in _domains():
        raise unknown("domain", name, list(_domains()))
    return _domains()[name]


def make_sentences(class_names: Sequence[str], domains: Sequence[str] = ("objects",)) -> dict[str, list[str]]:
    """Make sentences about classes from the templates of one domain or more.

    The class name is cleaned as in prompts (`clean_name`), and "a" before a vowel becomes "an".

    Args:
        class_names: unique names.
        domains: names of domains; a sentence that two of them share is written once.

    Returns:
        Sentences by class name, as ``descriptions`` of `FewShotClassifier` takes them.

    Raises:
        UnknownNameError: if no domain has the name.
        InputError: if there are no classes or domains, or a class name is empty or occurs twice.

    >>> make_sentences(["owl", "snow_leopard"], ["animals"])["owl"][:2]
    ['a photo of an owl, an animal.', 'a close-up photo of the head of an owl.']
    """
    if not class_names or not domains:
        raise InputError("sentences need at least one class name and one domain")
    templates = tuple(dict.fromkeys(sentence for name in domains for sentence in get_domain(name).sentences))
    an = tuple(ARTICLE.sub(r"\1n {}", sentence) for sentence in templates)
    class_prompts(class_names)  # checks the names
    return {
        name: class_prompts([name], an if clean_name(name)[0].lower() in VOWELS else templates)[name]
        for name in class_names
    }
