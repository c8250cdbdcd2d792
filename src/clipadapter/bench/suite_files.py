"""The files of suites: those of this package by name, and others by path. To list or find them imports no torch."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from clipadapter.errors import DataError
from clipadapter.utils.files import path_without_links
from clipadapter.utils.parsing import parse_toml, read_text
from clipadapter.utils.registry import unknown

FOLDER = files("clipadapter.bench") / "suites"
MAX_SUITE_BYTES = 1 << 20


def list_suites() -> list[str]:
    """Names of the suites of the package, sorted."""
    return sorted(entry.name[:-5] for entry in FOLDER.iterdir() if entry.name.endswith(".toml"))


def read_suite(name: str | Path) -> tuple[str, dict[str, Any]]:
    """The name of a suite of the package, or of a ``.toml`` file by its path, and the fields that its file states."""
    text = str(name)
    if text.endswith(".toml") or "/" in text:
        stem = Path(text).stem
        return stem, parse_toml(read_text(text, MAX_SUITE_BYTES), f"suite '{stem}'")
    if text not in list_suites():
        raise unknown("suite", text, list_suites())
    return text, parse_toml((FOLDER / f"{text}.toml").read_text(encoding="utf-8"), f"suite '{text}'")


def plan_file(folder: Path, name: str) -> Path:
    """The file with the plan of a suite in a folder of records."""
    return path_without_links(folder, "plans", f"{name}.json", error=DataError)


def list_planned_suites(folder: Path) -> list[str]:
    """Names of the suites that were run in a folder, sorted."""
    return sorted(path.stem for path in plan_file(folder, "").parent.glob("*.json"))


def check_study(folder: Path, name: str) -> None:
    """Refuse a suite that was not run in a folder."""
    if name not in list_planned_suites(folder):
        raise missing_study(folder, name)


def missing_study(folder: Path, name: str) -> DataError:
    """The error about a suite that was not run in a folder."""
    return DataError(
        f"'{folder}' has no runs of suite '{name}'; it has: {', '.join(list_planned_suites(folder)) or 'none'}"
    )
