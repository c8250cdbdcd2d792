"""Register and look up heads by name, with their `Fidelity`: how close each is to the publication it is named after.

Nothing here imports torch: the names of heads are checked before the work begins.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from typing_extensions import Self, dataclass_transform

from clipadapter.errors import InputError, brief
from clipadapter.utils.registry import Registry

HEADS: Registry[Any] = Registry("head", "clipadapter.heads", "clipadapter.tuners")
"""All heads by name. Tuners, which train through a tower, are chosen by name like them."""

HeadClass = TypeVar("HeadClass", bound=type[Any])

FIDELITY_KINDS = {
    "verified": "checked against outputs of released code",
    "paper": "written from the paper, not checked against released code",
    "partial": "only in part as published",
    "inspired": "inspired by a paper, no implementation of it",
    "own": "a method of this project",
    "not stated": "not stated",
}
"""Kinds of fidelity and their meaning."""
ARGUMENTS = re.compile(r"^Args:\n((?: {4}.*\n?)+)", re.MULTILINE)
"""The section of a cleaned docstring that describes parameters."""
ARGUMENT = re.compile(r"^( {4}(\w+): .*\n?(?: {8}.*\n?)*)", re.MULTILINE)
"""The description of one parameter in that section."""
FIDELITY = "\n\nFidelity: "  # begins the last paragraph of the docstring of a head


@dataclass(frozen=True)
class Fidelity:
    """How faithful a head is to the publication that it is named after.

    Args:
        kind: one of `FIDELITY_KINDS`.
        statement: what was checked, and what is not as published, in sentences; empty if nothing is stated.
        own_recipe: whether the parameters are a recipe of this project, and not a published one.
    """

    kind: str = "not stated"
    statement: str = ""
    own_recipe: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text that a head's docstring states: a kind, a colon and sentences.

        Raises:
            InputError: if the kind is not known, or no sentence follows.
        """
        kind, _, statement = (part.strip() for part in text.partition(":"))
        if kind == cls.kind and not statement:
            return cls()
        if kind not in FIDELITY_KINDS or not statement.endswith("."):
            known = ", ".join(FIDELITY_KINDS)
            raise InputError(f"fidelity is 'KIND: sentences.' with a kind out of {known}, but is {brief(text)}")
        return cls(kind, statement)

    @classmethod
    def of(cls, docstring: str, facts: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> Self:
        """The fidelity that the last paragraph of a head's docstring states; "not stated" without one.

        Args:
            docstring: of the head, cleaned.
            facts: of its registration.
            params: parameters of the head; None for its defaults.
        """
        statement, published = docstring.partition(FIDELITY)[2], facts.get("published_with") or {}
        own_recipe = any((params or {}).get(key) != value for key, value in published.items())
        return replace(cls.parse(" ".join(statement.split())) if statement else cls(), own_recipe=own_recipe)

    @property
    def is_as_published(self) -> bool:
        """Whether no difference from the published method is stated."""
        return self.kind in ("verified", "paper", "not stated") and not self.own_recipe

    def __str__(self) -> str:
        meaning = FIDELITY_KINDS[self.kind]
        own = "These parameters are a recipe of this project; --recipe sets a published one." if self.own_recipe else ""
        return f"{meaning[0].upper()}{meaning[1:]}. {self.statement} {own}".strip()


list_heads = HEADS.list
head_info = HEADS.info
head_name = HEADS.name_of


def registered_name(head: object) -> str:
    """The registered name of a head; the name of its class if it is not registered."""
    return head_name(type(head)) or type(head).__name__


@dataclass_transform(eq_default=False, kw_only_default=True, field_specifiers=(field,))
def register_head(name: str, **facts: Any) -> Callable[[HeadClass], HeadClass]:
    """Class decorator that registers a head under a public name and completes the class docstring.

    A class without a constructor, its own or that of a base, becomes a dataclass: its fields are the parameters, given
    by name, except for those with ``field(init=False)`` and for learned attributes, whose names end in ``_``. Constants
    that are annotated are ``ClassVar``.

    The docstring gets the description of inherited parameters that it does not describe itself. Its last paragraph
    says how faithful the head is to its source: "Fidelity: KIND: sentences.", with a kind out of "verified", "paper",
    "partial", "inspired" and "own"; see `Fidelity`. The kind is replaced by its meaning.

    Args:
        name: lower-case words joined by hyphens.
        facts: further entries, such as ``paper`` and ``compare``. ``published_with`` has the parameters of the
            published recipes that the defaults set otherwise: with other values the head is not as published.

    Raises:
        InputError: if another class has the name, or the fidelity has another form.
    """
    if "fidelity" in facts:
        raise InputError(f"the fidelity of {name} is stated by its docstring: end it with 'Fidelity: KIND: sentences.'")

    def decorate(cls: HeadClass) -> HeadClass:
        owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
        docstring = inspect.cleandoc(cls.__doc__ or "")
        if owner is object or (owner is not cls and "__dataclass_fields__" in vars(owner)):
            for learned in (each for each in inspect.get_annotations(cls) if each.endswith("_")):
                if learned not in vars(cls):
                    setattr(cls, learned, field(init=False))
            dataclass(eq=False, repr=False, kw_only=True)(cls)
            cls.__doc__ = docstring or None  # of a class without one, `dataclass` writes the signature there
        fidelity = Fidelity.of(docstring, facts)
        HEADS.register(name, **facts)(cls)
        if docstring:
            cls.__doc__ = f"{_complete_arguments(cls, docstring.partition(FIDELITY)[0])}{FIDELITY}{fidelity}\n"
        return cls

    return decorate


def default_parameters(name: str) -> dict[str, Any]:
    """The parameters of a head with their defaults, in the order of its docstring: its own before inherited ones.

    >>> default_parameters("tip-adapter-f")["alpha"], [*default_parameters("rla")][0]
    (1.0, 'steps')

    Raises:
        UnknownNameError: if no head has this name.
    """
    cls = HEADS.info(name).cls
    defaults = {key: parameter.default for key, parameter in inspect.signature(cls).parameters.items()}
    described = [key for key in describe_arguments(inspect.cleandoc(cls.__doc__ or "")) if key in defaults]
    return {key: defaults[key] for key in dict.fromkeys((*described, *defaults))}


def describe_arguments(docstring: str) -> dict[str, str]:
    """By parameter, the lines under "Args:" of a cleaned docstring that describe it, with their indentation."""
    section = ARGUMENTS.search(docstring)
    return {} if section is None else {match[2]: match[1].rstrip() for match in ARGUMENT.finditer(section[1])}


def _complete_arguments(cls: type[Any], text: str) -> str:
    """The docstring of a class, whose section "Args:" has the inherited parameters too."""
    parameters = inspect.signature(cls).parameters
    inherited = {
        name: description
        for base in reversed(cls.__mro__[1:])
        for name, description in describe_arguments(inspect.cleandoc(base.__dict__.get("__doc__") or "")).items()
    }
    described, section = describe_arguments(text), ARGUMENTS.search(text)
    missing = [inherited[name] for name in parameters if name in inherited and name not in described]
    if section is None or not missing:
        return text
    return text[: section.start()] + "\n".join([section[0].rstrip(), *missing, ""]) + text[section.end() :]


def fidelity_of(name: str, params: Mapping[str, Any] | None = None) -> Fidelity:
    """The `Fidelity` of a head with some parameters, or its defaults; "not stated" for an unregistered name."""
    if name not in HEADS.list():
        return Fidelity()
    entry = HEADS.info(name)
    return Fidelity.of(entry.docstring, entry.facts, params)


def refuse_update(head: str, *, transductive: bool, tunes_encoder: bool, model: object = "this model") -> None:
    """Refuse to change a model whose head, by what its class declares, needs pictures that models do not store."""
    if transductive or tunes_encoder:
        needed = "pictures without labels" if transductive else "the pictures of the fit"
        raise InputError(
            f"{model} can't be changed: its head {head} needs {needed} for every change, and models do not store them. "
            "Fit again with all pictures"
        )
