"""What ``help()`` shows of the classes that people use: an example first, and all defaults."""

import inspect
import re

import pytest

from clipadapter import ClipAdapter, FewShotClassifier, list_heads
from clipadapter.heads import head_info
from clipadapter.utils.docstrings import (
    describe_arguments,
    examples_first,
    with_defaults,
    without_defaults,
    without_examples,
)

CLASSES = {"FewShotClassifier": FewShotClassifier, **{name: head_info(name).cls for name in list_heads()}}


def defaults(cls):
    parameters = inspect.signature(cls).parameters.values()
    return {part.name: part.default for part in parameters if part.default is not part.empty}


@pytest.mark.parametrize("name", CLASSES)
def test_every_described_parameter_says_its_default(name):
    described = describe_arguments(inspect.cleandoc(CLASSES[name].__doc__))
    for parameter, value in defaults(CLASSES[name]).items():
        stated = re.search(r"Default: (.*)\.$", described[parameter])[1]
        assert stated.replace('"', "'") == repr(value)
        assert described[parameter].count("Default: ") == 1


@pytest.mark.parametrize("name", CLASSES)
def test_an_example_stands_before_the_parameters(name):
    docstring = CLASSES[name].__doc__
    if ">>>" in docstring and "Args:" in docstring:
        assert docstring.index(">>>") < docstring.index("Args:")
        assert docstring.rindex(">>>") < docstring.index("Args:")


@pytest.mark.parametrize("cls", [FewShotClassifier, ClipAdapter])
def test_the_classes_of_the_first_page_have_an_example(cls):
    assert ">>> " in cls.__doc__


def test_the_signature_of_a_classifier_names_its_parameters():
    parameters = inspect.signature(FewShotClassifier).parameters
    assert list(parameters)[:3] == ["encoder", "head", "head_params"]
    assert parameters["encoder"].default == "auto"
    assert list(parameters) == list(describe_arguments(inspect.cleandoc(FewShotClassifier.__doc__)))


TEXT = """Adds.

Args:
    x: a number.
    y: another,
        on two lines.

>>> 1 + 1
2

The end."""


def test_defaults_and_examples_can_be_taken_out_again():
    changed = with_defaults(TEXT, {"x": "auto", "y": 0.5})
    assert 'x: a number. Default: "auto".' in changed and "on two lines. Default: 0.5." in changed
    assert without_defaults(changed) == TEXT
    assert without_examples(TEXT).endswith("on two lines.\n\nThe end.") and ">>>" not in without_examples(TEXT)


def test_an_example_is_moved_and_nothing_is_lost():
    moved = examples_first(TEXT)
    assert moved.startswith("Adds.\n\n>>> 1 + 1\n2\n\nArgs:\n    x: a number.\n") and moved.endswith("\n\nThe end.")
    assert sorted(moved.split()) == sorted(TEXT.split())
    assert examples_first(moved) == moved
