"""The versions that were tested together."""

import re
from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from .pages import ROOT


def required(extra):
    """What the package and an extra require, with what other extras of the package bring."""
    for requirement in map(Requirement, requires("clipadapter")):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            if requirement.name == "clipadapter":
                for name in requirement.extras:
                    yield from required(name)
            else:
                yield requirement


def test_constraints_pin_every_requirement_of_the_tests_within_its_range():
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][^\s=+]*", line) for line in lines)
    pins = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    wanted = list(required("test"))
    assert len(wanted) > 30
    for requirement in wanted:
        version = pins.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version, prereleases=True), requirement
