"""The page on studies has a table of the fields of each part of a suite, as the pydantic models and docstrings say."""

import inspect
import json
import re

import pytest

from clipadapter.bench.suite import Order, Prompts, StreamRules, Suite, Variant
from clipadapter.heads.registry import describe_arguments

from ..pages import ROOT
from ..suite_text import parse_suite

PAGE = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
TITLES = {
    Suite: "The suite",
    Variant: "A head with parameters",
    Prompts: "Prompts",
    StreamRules: "Streams of tasks",
    Order: "An order of tasks",
}


def expected_table(model):
    """The table of the fields of a model; the name of a suite is that of its file."""
    descriptions = describe_arguments(inspect.cleandoc(model.__doc__))
    rows = ["| field | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if (model, name) == (Suite, "name"):
            continue
        meaning = " ".join(descriptions[name].split()).partition(": ")[2].replace("``", "`")
        rows.append(f"| `{name}` | {format_default(field)} | {meaning[0].upper()}{meaning[1:]} |")
    return "\n".join(rows)


def format_default(field):
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ("", [], {}):
        return "none"
    if isinstance(value, StreamRules) or (isinstance(value, list) and not isinstance(value[0], int | str)):
        return "see below"
    return f"`{json.dumps(value)}`"


@pytest.mark.parametrize("model", TITLES, ids=lambda model: model.__name__)
def test_the_page_has_the_fields_their_defaults_and_their_meanings(model):
    section = re.search(rf"^### {TITLES[model]}$\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)[1]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    expected = expected_table(model)
    assert table == expected, f"docs/studies.md should have, in '{TITLES[model]}':\n{expected}"


def test_the_suites_of_the_page_can_be_read():
    suites = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(suites) >= 2
    for text in suites:
        parse_suite("page", text).all_variants()
