"""Messages say how to install more of the package, from where it was installed."""

import json
import re
import shlex
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipadapter import errors
from clipadapter.errors import NEXT_EXTRAS, MissingExtraError, require

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_a_package_is_named_and_a_checkout_that_is_there_by_its_folder(tmp_path, monkeypatch):
    folder = tmp_path / "my checkout"
    folder.mkdir()
    here, gone = folder.as_uri(), (tmp_path / "gone").as_uri()

    def recorded(record):
        return lambda name: SimpleNamespace(read_text={"direct_url.json": record and json.dumps(record)}.get)

    def missing(name):
        raise PackageNotFoundError(name)

    for found, words in (
        (missing, ["clipadapter[lite]"]),
        (recorded(None), ["clipadapter[lite]"]),  # from an index
        (recorded({"url": gone, "dir_info": {}}), ["clipadapter[lite]"]),
        (recorded({"url": here, "dir_info": {}}), [f"{folder}[lite]"]),
        (recorded({"url": here, "dir_info": {"editable": True}}), ["-e", f"{folder}[lite]"]),
    ):
        monkeypatch.setattr("importlib.metadata.distribution", found)
        assert errors.install_command("lite") == shlex.join(["pip", "install", *words])


@pytest.mark.parametrize("extra", NEXT_EXTRAS)
def test_the_message_about_an_extra_that_a_person_meets_next_names_all_once(extra):
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_module", extra, "This")
    assert str(caught.value).count("[all]") == 1
    (pins,) = re.findall(r'^all = \["clipadapter\[(.*)\]"\]$', PYPROJECT.read_text(), flags=re.MULTILINE)
    assert extra in pins.split(",")
