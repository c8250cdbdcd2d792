"""Imports go down the floors. The files are parsed, not imported: an upward import would end collection first."""

import ast
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "clipadapter"
FLOORS = [
    {"errors"},
    {
        "registry",
        "functional",
        "metrics",
        "cache",
        "files",
        "split_types",
        "memory",
        "parallel",
        "pixels",
        "prediction",
        "towers",
    },
    {"parsing"},
    {"backends", "uncertainty"},
    {"data", "encoders", "heads"},
    {"features", "pretraining", "runtime", "tuners"},
    {"persistence"},
    {"classifier"},
    {"bench", "doctor", "explain", "export", "monitor", "testing"},
    {"report", "serve", "studio"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}


def part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All parts of a file's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def called(node: ast.Call) -> str:
    """What is called: a name, a name of a module or an object, or the name of a method behind a dot."""
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        return f"{owner.id if isinstance(owner, ast.Name) else ''}.{node.func.attr}"
    return node.func.id if isinstance(node.func, ast.Name) else ""


def imported(path: Path) -> set[str]:
    """First-level parts of the package that a file imports, inside functions too."""
    found = set()
    for node in nodes(path):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [node.module or ""]
            if node.module == "clipadapter":
                names = [f"clipadapter.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("clipadapter.")}
    return found - {"__version__"}


MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path):
    here = part(path)
    for other in imported(path) - {here}:
        assert FLOOR[other] < FLOOR[here], f"{here} (floor {FLOOR[here]}) imports {other} (floor {FLOOR[other]})"


def test_every_part_has_a_floor():
    assert {part(path) for path in MODULES} <= set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_module_stays_below_600_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 600


@pytest.mark.parametrize("family", ["heads", "encoders", "backends", "tuners"])
def test_a_member_is_named_in_its_own_file_only(family):
    """The one-file rule: no other module imports a registered member by its module's name."""
    files = (SOURCE / family).glob("[!_]*.py")
    members = {path.stem for path in files if "\n@register_" in path.read_text(encoding="utf-8")}
    for path in MODULES:
        if path.stem in members and path.parent.name == family:
            continue
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"clipadapter.{family}."):
                assert node.module.split(".")[2] not in members, f"{path} imports {node.module}"


def test_nothing_is_unpickled_or_evaluated():
    forbidden = {"pickle", "joblib", "dill", "shelve", "marshal"}
    for path in MODULES:
        for node in nodes(path):
            if isinstance(node, ast.Import):
                assert not forbidden & {alias.name.split(".")[0] for alias in node.names}, path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, path
            if isinstance(node, ast.Call):
                assert called(node) not in {"eval", "exec", "compile", "__import__"}, f"{path}:{node.lineno}"
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                if called(node) == "torch.load":
                    assert options.get("weights_only") == "True", f"{path}:{node.lineno}"
                assert options.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"


def test_library_code_does_not_print():
    for path in MODULES:
        if part(path) == "cli":
            continue
        for node in nodes(path):
            assert not (isinstance(node, ast.Call) and called(node) == "print"), f"{path}:{node.lineno}"
