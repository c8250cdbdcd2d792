"""Messages say how to install more of the package, from where it was installed."""

import json
import re
import shlex
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from clipadapter import errors
from clipadapter.errors import NEXT_EXTRAS, MissingExtraError, require

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.fixture
def installed(monkeypatch):
    """A function that says what pip recorded about the installation; None for a package from an index."""

    class Distribution:
        def __init__(self, record):
            self.record = record

        def read_text(self, name):
            return self.record if name == "direct_url.json" else None

    def install(record):
        monkeypatch.setattr(errors, "distribution", lambda name: Distribution(record and json.dumps(record)))

    return install


def test_a_package_from_an_index_is_named(installed):
    installed(None)
    assert errors.install_command("lite") == "pip install 'clipadapter[lite]'"


def test_a_checkout_is_named_by_its_folder(installed, tmp_path):
    folder = tmp_path / "my checkout"
    folder.mkdir()
    installed({"url": folder.as_uri(), "dir_info": {"editable": True}})
    assert shlex.split(errors.install_command("lite")) == ["pip", "install", "-e", f"{folder}[lite]"]
    installed({"url": folder.as_uri(), "dir_info": {}})
    assert shlex.split(errors.install_command("lite")) == ["pip", "install", f"{folder}[lite]"]


def test_a_checkout_that_was_removed_is_not_named(installed, tmp_path):
    installed({"url": (tmp_path / "gone").as_uri(), "dir_info": {}})
    assert errors.install_command("lite") == "pip install 'clipadapter[lite]'"


def test_without_an_installation_the_package_is_named(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(errors, "distribution", missing)
    assert errors.install_command("lite") == "pip install 'clipadapter[lite]'"


@pytest.mark.parametrize("extra", NEXT_EXTRAS)
def test_the_message_about_an_extra_that_a_person_meets_next_names_all_once(extra):
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_module", extra, "This")
    assert str(caught.value).count("[all]") == 1
    (pins,) = re.findall(r'^all = \["clipadapter\[(.*)\]"\]$', PYPROJECT.read_text(), flags=re.MULTILINE)
    assert extra in pins.split(",")
