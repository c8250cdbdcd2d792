"""Rules of scripts/supply.py: versions that were tested together, licences, the bill of materials."""

import importlib.util
import json
import re
from email.message import Message

import pytest
from packaging.requirements import Requirement

from .pages import ROOT

SPEC = importlib.util.spec_from_file_location("supply", ROOT / "scripts" / "supply.py")
supply = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(supply)


class Package:
    """What is installed, as importlib.metadata tells of it."""

    def __init__(self, version="1.0", requires=(), **fields):
        self.version, self.requires, self.metadata = version, list(requires), Message()
        for name, values in fields.items():
            for value in values if isinstance(values, list) else [values]:
                self.metadata[name.replace("_", "-")] = value


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("AGPL-3.0-only", False),
        ("", False),
        ("MIT OR AGPL-3.0-only", True),
        ("AGPL-3.0-only OR MIT", True),
        ("MIT AND AGPL-3.0-only", False),
        ("MIT AND (GPL-3.0-only OR BSD-3-Clause)", True),
        ("MIT AND GPL-3.0-only OR GPL-3.0-only", False),
        ("(MIT OR GPL-3.0-only) AND (GPL-3.0-only OR ISC)", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-only WITH LLVM-exception", False),
        ("(MIT", False),
        ("MIT ISC", False),
        ("MIT AND", False),
    ],
)
def test_one_side_of_or_and_both_of_and_must_be_allowed(expression, allowed):
    assert supply.is_allowed(expression) is allowed


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License_Expression": "MIT", "License": "GPL"}, "MIT"),
        ({"Classifier": ["License :: OSI Approved :: MIT License", "Topic :: Games"]}, "MIT"),
        ({"Classifier": ["License :: OSI Approved :: BSD License", "License :: OSI Approved"]}, "BSD-3-Clause"),
        ({"Classifier": "License :: OSI Approved :: GNU Affero General Public License v3"}, ""),
        (
            {
                "Classifier": [
                    "License :: OSI Approved :: MIT License",
                    "License :: OSI Approved :: GNU Affero General Public License v3",
                ]
            },
            "",
        ),
        ({"License": "Apache License, Version 2.0"}, "Apache-2.0"),
        ({"License": "Apache-2.0 AND MIT"}, "Apache-2.0 AND MIT"),
        ({"License": "2-clause BSD License"}, "BSD-2-Clause"),
        ({"License": "GNU Affero General Public License"}, ""),
        ({"License": "UNKNOWN"}, ""),
        ({}, ""),
    ],
)
def test_a_licence_is_read_from_what_the_metadata_say_and_never_guessed(fields, licence):
    assert supply.licence_of("some", Package(**fields)) == licence


def test_constraints_pin_what_is_installed_without_the_name_of_a_build():
    text = supply.constraints_text({"torch": Package("2.13.0+cpu"), "numpy": Package("2.4.6")})
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["torch==2.13.0", "numpy==2.4.6"]


def test_constraints_must_pin_all_direct_requirements_within_their_ranges():
    wanted = [Requirement(text) for text in ("numpy>=2", "pillow>=10.3", "click", "tomli>=2; python_version < '3.11'")]
    assert list(supply.constraint_faults("# made\nnumpy==2.4\nPillow==10.4.0\nclick==9.0a1\n", wanted)) == []
    faults = list(supply.constraint_faults("numpy==1.26\npillow>=10\n", wanted))
    assert faults == [
        "this line pins no version: pillow>=10",
        "numpy==1.26 is not within >=2",
        "pillow is missing",
        "click is missing",
    ]


def test_extras_of_the_project_are_followed():
    project = {
        "dependencies": ["numpy"],
        "optional-dependencies": {
            "all": ["clipadapter[a,b]"],
            "a": ["torch>=2"],
            "b": ["clipadapter[a]", "onnx"],
            "c": ["ray"],
        },
    }
    assert [each.name for each in supply.requirements_of(project, "all")] == ["numpy", "onnx", "torch"]


def test_the_file_of_the_project_is_complete_and_names_no_address():
    assert supply.main(["check-constraints"]) == 0
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|--|@", text)


def test_the_bill_of_materials_is_cyclonedx_and_says_what_needs_what(tmp_path):
    packages = {
        "one": Package("1.0+cpu", ["two>=1", "absent"], License_Expression="MIT"),
        "two": Package("2.0"),
    }
    bill = json.loads(json.dumps(supply.bill_of_materials("0.1.0", packages)))
    assert (bill["bomFormat"], bill["specVersion"], bill["metadata"]["component"]["version"]) == (
        "CycloneDX",
        "1.6",
        "0.1.0",
    )
    one, two = bill["components"]
    assert (one["purl"], one["licenses"]) == ("pkg:pypi/one@1.0%2Bcpu", [{"expression": "MIT"}])
    assert "licenses" not in two
    assert {each["ref"]: each["dependsOn"] for each in bill["dependencies"]} == {
        "clipadapter": ["one", "two"],
        "one": ["two"],
        "two": [],
    }


def test_a_wrong_call_says_what_there_is(capsys):
    assert supply.main(["sbom"]) == 2
    assert "constraints" in capsys.readouterr().err
