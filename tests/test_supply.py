"""The versions that were tested together, and what a release is made of."""

import os
import re
from importlib.metadata import requires

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import clipadapter

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


def test_a_release_is_of_one_version_and_only_its_last_job_may_publish():
    version = clipadapter.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    assert workflow["permissions"] == {} and publish["needs"] == "build"
    assert (build["permissions"], publish["permissions"]) == ({"contents": "read"}, {"id-token": "write"})
    scripts = [step["run"].split()[0] for step in build["steps"] if step.get("run", "").startswith("scripts/")]
    assert scripts == ["scripts/build", "scripts/try_wheel"]
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)
