"""What ``help()`` shows of the classes that people use: a signature with all defaults, and each parameter described."""

import inspect

import pytest

from clipadapter import ClipAdapter, FewShotClassifier, list_heads
from clipadapter.heads import head_info
from clipadapter.heads.registry import describe_arguments

CLASSES = {"FewShotClassifier": FewShotClassifier, **{name: head_info(name).cls for name in list_heads()}}


@pytest.mark.parametrize("name", CLASSES)
def test_every_parameter_of_the_signature_is_described(name):
    parameters = inspect.signature(CLASSES[name]).parameters
    assert all(part.kind in (part.POSITIONAL_OR_KEYWORD, part.KEYWORD_ONLY) for part in parameters.values())
    assert set(describe_arguments(inspect.cleandoc(CLASSES[name].__doc__))) == set(parameters)


@pytest.mark.parametrize("cls", [FewShotClassifier, ClipAdapter])
def test_the_classes_of_the_first_page_have_an_example(cls):
    assert ">>> " in cls.__doc__
