"""The code of the tutorials runs, block after block, in the folder that a reader would have by then."""

import re
import shlex
import shutil
import socket
import subprocess
import sys

import pytest
from PIL import Image

from clipadapter.encoders.registry import ENCODERS
from clipadapter.heads.base import HEADS

from .pages import ROOT, marked, read_page, run_command, shorten_training

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TUTORIALS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "tutorials").glob("*.md"))
FEWER = {"--seeds 3": "--seeds 1", "seeds=[1, 2, 3]": "seeds=[1]", "shots=30": "shots=8", "% 30 < 10": "% 8 < 4"}
COLOURS = {"flawless_fabric": (200, 190, 180), "global_defect": (90, 90, 160), "local_defect": (200, 120, 60)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What `first-model` leaves behind, of plain coloured pictures."""
    for part, count in (("shots", 4), ("test", 2)):
        for name, colour in COLOURS.items():
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", (40 + i, 40), tuple(value + 5 * i for value in colour))
                picture.save(tmp_path / part / name / f"{part}{i}.jpg")
    rows = [f"{p.relative_to(tmp_path)},{p.parent.name}" for p in sorted(tmp_path.glob("*/*/*.jpg"))]
    table = [f"{row},{'train' if row.startswith('shots') else 'test'}" for row in rows]
    Image.new("RGB", (50, 50), (200, 120, 60)).save(tmp_path / "photo.jpg")
    (tmp_path / "fabric.csv").write_text("\n".join(["path,label,split", *table]))
    monkeypatch.chdir(tmp_path)
    shorten_training(monkeypatch)
    return tmp_path


@pytest.fixture
def plug_ins(monkeypatch):
    """Registries that forget what a page adds, and ask for entry points again when something was installed."""
    for registry in (HEADS, ENCODERS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    before = set(sys.modules)
    yield monkeypatch
    for name in set(sys.modules) - before:
        if name in ("pulled_mean", "own_clip"):
            del sys.modules[name]


def install(folder, monkeypatch):
    """What `pip install -e` does, but for the network: the folder is importable and its entry points are found."""
    about = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    place = folder / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Name: {about['name']}\nVersion: {about['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {module}\n" for name, module in points.items())
        for group, points in about["entry-points"].items()
    ]
    (place / "entry_points.txt").write_text("".join(groups))
    monkeypatch.syspath_prepend(str(folder))
    for registry in (HEADS, ENCODERS):
        monkeypatch.setattr(registry, "_has_plug_ins", False)


@pytest.fixture
def shell(folder, plug_ins):
    """A function that runs one command of a page: in this process, but for servers and curl.

    Port 8000 may be taken here: a free one stands in for it.
    """
    servers, port = [], str(free_port())

    def run(line):
        words = shlex.split(line.replace("8000", port), comments=True)
        if words[:3] == ["pip", "install", "-e"]:
            install(folder / words[3], plug_ins)
        elif words[-1] == "&":
            servers.append(subprocess.Popen([sys.executable, "-m", *words[:-1]], stderr=subprocess.DEVNULL))
        elif words[0] == "curl":
            again = ["--fail", "--retry", "100", "--retry-delay", "1", "--retry-connrefused"]  # until the server is up
            subprocess.run([*words, *again], check=True, stdout=subprocess.DEVNULL)
        else:
            run_command(line)

    yield run
    for server in servers:
        server.terminate()
        assert server.wait(timeout=20) == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_page(name, folder, shell):
    """Every marked block, in order; blocks of Python share nothing, as if each were a script.

    With fewer seeds and pictures: more of them show no more of the commands.
    """
    for language, code, file in marked(read_page(name)):
        for many, few in FEWER.items():
            code = code.replace(many, few)
        if file is not None:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile(code, name, "exec"), {"__name__": "__main__"})
        else:
            for line in code.splitlines():
                shell(line)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS)
def test_a_page_runs_as_it_stands(page, folder, shell):
    if "curl" in read_page(page) and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if page.endswith("first-model.md"):  # it makes the folders itself
        for part in ("shots", "test"):
            (folder / part).rename(folder / f"other-{part}")
    run_page(page, folder, shell)


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_marks_its_code(page):
    """No block of Python that a reader would copy is left out; commands may be, where they need a network."""
    page = read_page(page)
    assert len(re.findall(r"^```python", page, re.MULTILINE)) == len(
        [b for b in marked(page) if b.language == "python"]
    )
    assert len(marked(page)) > 1
