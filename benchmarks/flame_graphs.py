"""docs/profiles.md and its flame graphs anew: where the time of the commands goes that a user waits for.

    python -m venv VENV && VENV/bin/pip install py-spy
    python benchmarks/flame_graphs.py PICTURES --py-spy VENV/bin/py-spy
    python benchmarks/flame_graphs.py PICTURES --py-spy VENV/bin/py-spy --only help --only fit
    python benchmarks/flame_graphs.py --write-only      # the page from the results that are there

PICTURES has one folder per class. Each command runs ROUNDS times alone, which gives the seconds of the page, and once
with py-spy, which takes samples of its stacks and of those of its processes; on Linux this needs root or the permission
to trace a process. Each run begins with the same store and without records. A thread that waits is not sampled.

In the graphs a module that is imported is one frame, "import NAME". Of frames in a row that belong to the same library
the first and the last are kept. Frames below MIN_SHARE of all samples are left out. The page is written after each
command, from `results/flame.json`: its text about each command is in COMMANDS. Both are committed together.
"""

import argparse
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from _output import summarise
from command_times import link_pictures, measure, user_environment
from speed_page import ROOT, commit, machine, significant, span

IMAGES, PAGE = ROOT / "docs" / "images" / "flame", ROOT / "docs" / "profiles.md"
RESULTS = Path(__file__).parent / "results" / "flame.json"
ROUNDS = 3
"""Runs without the profiler."""
RATE = 100
"""Samples per second."""
MIN_SHARE = 0.004
"""Of all samples, that a frame has at least to be drawn: about four pixels."""
WIDTH, ROW, CHARACTER = 1000, 18, 6.4
"""Pixels of a graph, of a row, and of a character."""
COLOURS = {"import": "#c9cdd4", "clipadapter": "#7cc4b8", "library": "#f2c48d", "python": "#e9e3d3"}
FRAME = re.compile(r"(?P<function>.*) \((?P<file>[^()]+?)(?::\d+)?\)$")
SKIPPED = (
    *(
        "<frozen importlib",
        "<frozen runpy>",
        "<string>",
        "importlib/",
        "functools",
        "contextlib",
        "threading",
        "concurrent/",
    ),
    *("click/", "clipadapter/__main__", "clipadapter/cli/app", "clipadapter/cli/options"),
)
"""Files whose frames say nothing: the import system, decorators, starts of threads, and how click calls a command."""


LOADING = "import (finding and loading files)"


@dataclass(frozen=True)
class Profiled:
    """A command and what the page says about it.

    Args:
        title: heading of its part of the page.
        arguments: of `clipadapter`; names in braces are paths.
        text: what it does, for readers of the graph.
        before: commands that run first, without a profile.
        is_server: it is asked once and then stopped.
    """

    title: str
    arguments: str
    text: str
    before: tuple[str, ...] = ()
    is_server: bool = False


FIT = "fit {shots} --encoder lite --out {model}"
COMMANDS = {
    "help": Profiled(
        "The command line",
        "--help",
        "Every command begins like this, but imports its own module alone. No numpy and no torch.",
    ),
    "fit": Profiled(
        "Fit, from pictures",
        FIT + " --no-cache",
        "Imports torch, encodes the shots, fits `auto` with cross-validation, and learns calibration and rejection.",
    ),
    "fit-stored": Profiled(
        "Fit, stored features",
        FIT,
        "A fit without the encoder: files are read and hashed, features come from the store.",
        before=(FIT,),
    ),
    "predict-one": Profiled(
        "Predict, one picture",
        "predict {model} {photo}",
        "Runs without torch: loading the tower is most of it.",
        (FIT,),
    ),
    "predict-folder": Profiled(
        "Predict, a folder",
        "predict {model} {more} --no-cache",
        "Reading, encoding and the head, picture by picture.",
        (FIT,),
    ),
    "embed": Profiled(
        "Embed",
        "embed {all} --encoder lite",
        "The pipeline of reading and encoding alone, with the trial that chooses a backend.",
    ),
    "bench": Profiled(
        "Bench run, three heads",
        "bench run few-shot --data {all} --encoder lite --heads linear-probe,clip-adapter,auto --shots 4 --seeds 2 "
        "--workers 1 --out {records}",
        "Features of all pictures once, then six fits in this process, since there is one worker.",
    ),
    "serve": Profiled(
        "Serve, one request",
        "serve {exported} --port 0 --json",
        "Start of the server with an exported file, one request with one picture, and the end.",
        (FIT, "export {model} --out {exported}"),
        is_server=True,
    ),
}


# ---- Samples ----


def fill(command: str, places: dict[str, str]) -> list[str]:
    """The words of a command line with its paths."""
    return [word.format(**places) for word in command.split()]


def run_plain(command: list[str], environment: dict[str, str]) -> None:
    """Run a command without a profile."""
    line = [sys.executable, "-m", "clipadapter", *command]
    subprocess.run(line, check=True, capture_output=True, env=environment)


def time_server(command: list[str], environment: dict[str, str], photo: str) -> dict[str, float]:
    """Seconds until the first answer of a server, and processor seconds of its whole life."""
    start, before = time.perf_counter(), os.times()
    line = [sys.executable, "-m", "clipadapter", *command]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    ask(process, photo)
    seconds = time.perf_counter() - start
    process.terminate()
    process.communicate(timeout=60)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "cpu": cpu}


def record(
    command: list[str],
    py_spy: str,
    out: Path,
    environment: dict[str, str],
    then: Callable[[subprocess.Popen], None] | None,
) -> None:
    """Run a command under py-spy, which writes a line per stack."""
    options = ["record", "--format", "raw", "--rate", str(RATE), "--function", "--subprocesses", "--output", str(out)]
    process = subprocess.Popen(
        [py_spy, *options, "--", sys.executable, "-m", "clipadapter", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    if then is not None:
        then(process)
    _, errors = process.communicate(timeout=600)
    if not out.exists() or (process.returncode and then is None):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {errors[-2000:]}")


def ask(process: subprocess.Popen, photo: str) -> None:
    """Send one picture to the server when it answers."""
    # py-spy writes lines of its own before those of the server.
    urls = (re.search(r'"url": "([^"]+)"', line) for line in process.stdout)
    url = next(found[1] for found in urls if found)
    body = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
    body += Path(photo).read_bytes() + b"\r\n--x--\r\n"
    header = {"Content-Type": "multipart/form-data; boundary=x"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/predict", body, header), timeout=60) as answer:
        answer.read()


def ask_and_stop(process: subprocess.Popen, photo: str) -> None:
    """Send one picture to the server that py-spy started, then stop the server."""
    import psutil

    ask(process, photo)
    for child in psutil.Process(process.pid).children():
        child.send_signal(signal.SIGTERM)


def read_stacks(path: Path) -> Counter[tuple[str, ...]]:
    """Numbers of samples by stack, in short frames."""
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        stack, _, count = line.rpartition(" ")
        stacks[shorten(stack.split(";"))] += int(count)
    return stacks


def shorten(stack: list[str]) -> tuple[str, ...]:
    """Frames as dotted names: imports as one frame, of a library the first and the last in a row."""
    frames: list[str] = []
    for text in stack:
        frame = name_frame(text)
        if frame is None:
            continue
        if frames and kind(frame) != "clipadapter":
            if frame == frames[-1]:
                continue
            # A third frame in a row of the same library takes the place of the second.
            if len(frames) > 1 and owner(frame) == owner(frames[-1]) == owner(frames[-2]):
                frames[-1] = frame
                continue
        frames.append(frame)
    if "(<frozen importlib" in stack[-1]:
        frames.append(LOADING)
    return tuple(frames)


def name_frame(text: str) -> str | None:
    """``package.module.function`` without paths and lines; None for frames that say nothing."""
    found = FRAME.match(text)
    if found is None:
        return None if text.startswith(("process ", "thread ")) else text
    file = re.sub(r".*(?:site-packages|/src|/lib/python[\d.]+|lib-dynload)/", "", found["file"])
    if file.startswith(SKIPPED) or file.startswith("/"):
        return None
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if found["function"] == "<module>":
        return f"import {module}"
    return f"{module}.{found['function']}"


def owner(frame: str) -> str:
    """The library of a frame; imports of a library are apart from its calls."""
    if frame == LOADING:
        return frame
    prefix = "import " if frame.startswith("import ") else ""
    return prefix + frame.removeprefix("import ").partition(".")[0]


def kind(frame: str) -> str:
    """Which colour a frame has."""
    if frame.startswith("import "):
        return "import"
    package = owner(frame)
    if package == "clipadapter":
        return "clipadapter"
    return "python" if package in sys.stdlib_module_names else "library"


# ---- The picture ----


@dataclass
class Node:
    """A frame with the frames that it calls."""

    samples: int = 0
    children: dict[str, "Node"] = field(default_factory=dict)


def build_tree(stacks: Counter[tuple[str, ...]]) -> Node:
    root = Node()
    for stack, samples in stacks.items():
        root.samples += samples
        node = root
        for frame in stack:
            node = node.children.setdefault(frame, Node())
            node.samples += samples
    return root


def draw(root: Node, title: str) -> str:
    """An SVG without scripts; frames are as wide as their samples, callers above those that they call."""
    boxes: list[str] = []
    deepest = 0

    def place(node: Node, x: float, depth: int) -> None:
        nonlocal deepest
        for frame, child in sorted(node.children.items(), key=lambda item: -item[1].samples):
            if child.samples < MIN_SHARE * root.samples:
                continue
            width = WIDTH * child.samples / root.samples
            deepest = max(deepest, depth)
            boxes.append(_box(frame, child.samples / root.samples, x, depth, width))
            place(child, x, depth + 1)
            x += width

    place(root, 0.0, 0)
    top = 2 * ROW
    height = top + (deepest + 1) * ROW + 4
    legend = "".join(
        f'<rect x="{WIDTH - 360 + 90 * i}" y="6" width="12" height="12" fill="{colour}"/>'
        f'<text x="{WIDTH - 343 + 90 * i}" y="16">{name}</text>'
        for i, (name, colour) in enumerate(COLOURS.items())
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="10.5" fill="#1d2126">'
        '<rect width="100%" height="100%" fill="#ffffff"/>'
        f'<text x="6" y="17" font-size="13">{html.escape(title)}</text>'
        f'{legend}<g transform="translate(0 {top})" stroke="#ffffff" stroke-width="0.5">{"".join(boxes)}</g></svg>\n'
    )


def shorten_name(name: str, room: int) -> str:
    """As much of the end of a dotted name as there is room for; a function name is cut at its end."""
    while len(name) > room and "." in name and not name.startswith("import "):
        name = name.partition(".")[2]
    if len(name) > room:
        name = name[: room - 1] + "…" if room > 2 else ""
    return name


def _box(frame: str, share: float, x: float, depth: int, width: float) -> str:
    room = int((width - 6) / CHARACTER)
    label = shorten_name(frame.removeprefix("clipadapter."), room)
    text = f'<text x="{x + 3:.1f}" y="{depth * ROW + 12.5}" stroke="none">{html.escape(label)}</text>' if label else ""
    return (
        f"<g><title>{html.escape(frame)}, {share:.1%}</title>"
        f'<rect x="{x:.1f}" y="{depth * ROW}" width="{width:.1f}" height="{ROW}" fill="{COLOURS[kind(frame)]}"/>'
        f"{text}</g>"
    )


# ---- The page ----


def where(stacks: Counter[tuple[str, ...]], shown: int = 5) -> str:
    """The parts that take most samples: imports by package, else the innermost function of this package."""
    parts: Counter[str] = Counter()
    for stack, samples in stacks.items():
        imports = [owner(frame).removeprefix("import ") for frame in stack if frame.startswith("import ")]
        if imports:
            names = [name for name in imports if not name.startswith("(")]
            others = [name for name in names if name != "clipadapter"]
            parts[f"import of {(others or names or ['small modules'])[0]}"] += samples
            continue
        own = [frame for frame in stack if kind(frame) == "clipadapter"]
        parts[f"`{own[-1].removeprefix('clipadapter.')}`" if own else "start and end of the process"] += samples
    total = sum(parts.values())
    return ", ".join(f"{name} {samples / total:.0%}" for name, samples in parts.most_common(shown))


def describe_seconds(result: dict[str, Any]) -> str:
    """What the command took without the profiler; nothing if it was only profiled."""
    if "seconds" not in result:
        return ""
    seconds, cpu = result["seconds"], significant(result["cpu"]["median"])
    return f"{significant(seconds['median'])} s ({span(seconds)}), {cpu} s of processors. "


def write_page(results: dict[str, dict[str, Any]]) -> str:
    """The page with the graphs that there are results of."""
    lines = [
        "# Profiles",
        "",
        "Where the time of commands goes, by `benchmarks/flame_graphs.py`. Seconds are those of the command alone: the "
        f"median of {ROUNDS} runs from the shell, imports included. Then py-spy takes samples of all threads that do "
        "not wait, and percentages are shares of these samples: two threads that work at the same time count twice. A "
        "frame is as wide as its share, and the frames below it are those that it calls. Open a picture alone to read "
        "the names of narrow frames. Imports are one frame per package, and rare stacks are left out. The empty part "
        "at the right is the start and the end of the process. How fast the commands are on more pictures is on the "
        "page [Speed](speed.md).",
    ]
    for name, profiled in COMMANDS.items():
        if name not in results:
            continue
        result = results[name]
        command = re.sub(r"[{}]", "", profiled.arguments)
        lines += [
            "",
            f"## {profiled.title}",
            "",
            f"`clipadapter {command}`: {describe_seconds(result)}{profiled.text} Most of it: {result['where']}.",
            "",
            f"[![Flame graph of {profiled.title.lower()}](images/flame/{name}.svg)](images/flame/{name}.svg)",
            "",
            f"Commit {result['commit']}, {result['machine']}; load before it began: {result['load']}.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="?", help="a folder of class folders")
    parser.add_argument("--write-only", action="store_true", help="run nothing")
    parser.add_argument("--py-spy", default="py-spy", help="the program")
    parser.add_argument("--only", action="append", choices=COMMANDS, help="one graph; may be given again")
    parser.add_argument("--classes", type=int, default=20)
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if args.write_only:
        PAGE.write_text(write_page(results), encoding="utf-8")
        return
    if args.pictures is None:
        parser.error("PICTURES is missing: a folder with one folder of pictures per class")
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in args.only or COMMANDS:
        profiled = COMMANDS[name]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            photo = str(link_pictures(args.pictures.resolve(), folder, args.classes, shots=8, extra=8))
            places = {each: str(folder / each) for each in ("shots", "more", "model", "records")}
            places |= {"photo": photo, "all": places["shots"], "exported": str(folder / "model.onnx")}
            cache = folder / "cache"
            cache.mkdir()
            environment = user_environment() | {"XDG_CACHE_HOME": str(cache)}
            run_plain(["--help"], environment)  # bytecode is written before the profile
            for command in profiled.before:
                run_plain(fill(command, places), environment)
            begin = partial(begin_run, folder, environment)
            command, load = fill(profiled.arguments, places), os.getloadavg()[0]
            line = [sys.executable, "-m", "clipadapter", *command]
            runs = [
                time_server(command, begin(), photo) if profiled.is_server else measure(line, begin())
                for _ in range(ROUNDS)
            ]
            out = folder / "stacks.txt"
            record(
                command, args.py_spy, out, begin(), partial(ask_and_stop, photo=photo) if profiled.is_server else None
            )
            stacks = read_stacks(out)
        svg = draw(build_tree(stacks), "clipadapter " + re.sub(r"[{}]", "", profiled.arguments)[:60])
        (IMAGES / f"{name}.svg").write_text(svg, encoding="utf-8")
        results[name] = {unit: summarise(round(run[unit], 3) for run in runs) for unit in ("seconds", "cpu")}
        results[name] |= {"where": where(stacks), "commit": commit(), "machine": machine(), "load": f"{load:.1f}"}
        print(f"{name}: {describe_seconds(results[name])}{len(svg) / 1000:.0f} kB; {where(stacks)}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(write_page(results), encoding="utf-8")


def begin_run(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Remove what an earlier run left, so that each run finds the store as `before` left it. Gives the environment."""
    shutil.rmtree(folder / "records", ignore_errors=True)
    shutil.rmtree(folder / "cache-of-run", ignore_errors=True)
    shutil.copytree(folder / "cache", folder / "cache-of-run")
    return environment | {"XDG_CACHE_HOME": str(folder / "cache-of-run")}


if __name__ == "__main__":
    main()
