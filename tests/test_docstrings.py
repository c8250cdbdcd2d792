"""What ``help()`` shows of the classes that people use: a signature with all defaults, and each parameter described."""

import inspect
import pkgutil
from importlib import import_module

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


@pytest.mark.parametrize("package", ["data", "encoders", "utils"])
def test_each_public_method_has_a_docstring_or_that_of_a_base(package):
    name = f"clipadapter.{package}"
    for info in pkgutil.walk_packages(import_module(name).__path__, f"{name}."):
        for cls in vars(import_module(info.name)).values():
            if inspect.isclass(cls) and cls.__module__ == info.name and not cls.__name__.startswith("_"):
                kinds = (property, classmethod, staticmethod)
                own = [key for key, value in vars(cls).items() if inspect.isfunction(value) or isinstance(value, kinds)]
                undescribed = [key for key in own if key[0] != "_" and not inspect.getdoc(getattr(cls, key))]
                assert undescribed == [], cls
