"""Imports go down the floors. The files are parsed, not imported: an upward import would end collection first."""

import ast
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "clipadapter"
FLOORS = [
    {"errors"},
    {"utils"},
    {"adaptation", "metrics"},
    {"runtime/engines", "uncertainty"},
    {"data", "encoders", "heads"},
    {"features", "pretraining", "rendering", "runtime", "tuners"},
    {"persistence"},
    {"classifier"},
    {"bench", "doctor", "explain", "monitor", "runtime/export", "testing"},
    {"demo", "report", "serve", "studio"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}


def part(*names: str) -> str:
    """The part with a floor that a module is in, by the module's name behind the first dot: a package or a file."""
    return "/".join(names[:2]) if "/".join(names[:2]) in FLOOR else names[0]


def part_of(path: Path) -> str:
    return part(*path.relative_to(SOURCE).with_suffix("").parts)


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
    """Parts of the package that a file imports, inside functions too."""
    found = set()
    for node in nodes(path):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {part(*name.split(".")[1:]) for name in names if name.startswith("clipadapter.")}
    return found - {"__version__"}


MODULES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def test_imports_go_down():
    for path in MODULES:
        here = part_of(path)
        for other in imported(path) - {here}:
            assert FLOOR[other] < FLOOR[here], f"{path}: {here} imports {other}, which is on its floor or above"


def module_name(path: Path) -> str:
    name = ".".join(("clipadapter", *path.relative_to(SOURCE).with_suffix("").parts))
    return name.removesuffix(".__init__")


def statements(nodes: list[ast.stmt]) -> list[ast.stmt]:
    """All statements, also those of functions, and those for type checkers alone."""
    found = []
    for node in nodes:
        found.append(node)
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            found += statements(getattr(node, name, []))
    return found


def lazy_names() -> dict[str, str]:
    """The modules of the names that the stubs of lazy packages list, as ``clipadapter.data.scan``."""
    return {
        f"{module_name(path)}.{alias.name}": f"{module_name(path)}.{node.module}"
        for path in SOURCE.rglob("__init__.pyi")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        for alias in node.names
    }


def import_graph() -> dict[str, set[str]]:
    """The modules that each module imports: when it is imported, later, or for its types."""
    modules, lazy = {module_name(path): path for path in MODULES}, lazy_names()
    graph = {}
    for name, path in modules.items():
        targets = set()
        for node in statements(ast.parse(path.read_text(encoding="utf-8")).body):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {lazy.get(name, name) for name in names} & modules.keys() or {node.module or ""}
        graph[name] = targets & modules.keys() - {name}
    return graph


def test_no_module_imports_itself_through_others():
    graph = import_graph()
    # Modules without a target that is left can be in no circle; what can't be removed this way is in one.
    while free := {name for name, targets in graph.items() if not targets & graph.keys()}:
        graph = {name: targets for name, targets in graph.items() if name not in free}
    assert not graph, f"these modules are in a circle of imports, or import one that is: {sorted(graph)}"


def test_every_part_has_a_floor():
    assert {part_of(path) for path in MODULES} <= set(FLOOR)


LONG = {"classifier/classifier.py": 800}
"""One class in lifecycle order, which is easier to read in one file."""


def test_a_module_stays_below_700_lines():
    for path in MODULES:
        name = path.relative_to(SOURCE).as_posix()
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONG.get(name, 700), name


def member(path: Path, family: str) -> str | None:
    """The module of a family that a file is, or the package that it is in."""
    return path.relative_to(SOURCE / family).parts[0].removesuffix(".py") if SOURCE / family in path.parents else None


def registers(path: Path) -> bool:
    """Whether a file has a class with a decorator such as ``register_head``."""
    decorators = [part for node in nodes(path) if isinstance(node, ast.ClassDef) for part in node.decorator_list]
    return any(isinstance(part, ast.Call) and called(part).startswith("register_") for part in decorators)


@pytest.mark.parametrize("family", ["heads", "encoders", "runtime/engines", "tuners"])
def test_a_member_is_named_in_its_own_file_or_package_only(family):
    """The one-file rule: no other module imports a member, which is a module or a package that registers a class."""
    members = {member(path, family) for path in (SOURCE / family).rglob("[!_]*.py") if registers(path)}
    assert members
    package = f"clipadapter.{family.replace('/', '.')}."
    for path in MODULES:
        if member(path, family) in members:
            continue
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package):
                name = node.module.removeprefix(package).split(".")[0]
                assert name not in members, f"{path} imports {node.module}"


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
                assert called(node) not in {"torch.jit.load", "torch.export.load"}, f"{path}:{node.lineno}"
                if called(node) == "torch.load":
                    assert options.get("weights_only") == "True", f"{path}:{node.lineno}"
                assert options.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
