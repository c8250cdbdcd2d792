"""Jinja environments for HTML pages that load no other file."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clipadapter.utils.formatting import shorten_name


def create_environment(package: str) -> Environment:
    """An environment for the templates of a package, and those that all pages share, with all values escaped."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("clipadapter.rendering")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = shorten_name
    return environment


def read_asset(package: str, name: str) -> Markup:
    """A style sheet or script among the templates of a package, to be inserted into a page unescaped."""
    environment = create_environment(package)
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, name)
    return Markup(source)  # noqa: S704 - no data in it
