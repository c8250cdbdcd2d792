"""Suites from their text, as from a file."""

from clipadapter.bench.suite import make_suite
from clipadapter.utils.parsing import parse_toml


def parse_suite(name, text):
    """A suite from TOML."""
    return make_suite(name, parse_toml(text, f"suite '{name}'"))
