"""docs/speed.md anew: runs the benchmarks of speed, keeps their results as one JSON file, writes the page from both.

    python benchmarks/speed_page.py PICTURES --rivals-python A/bin/python --rivals-python B/bin/python
    python benchmarks/speed_page.py PICTURES --small            # every section in its smallest form; no page is written
    python benchmarks/speed_page.py PICTURES --only store       # one section; the others stay as they are
    python benchmarks/speed_page.py PICTURES --resume           # what this commit has not measured on this machine yet
    python benchmarks/speed_page.py --write-only                # the page from the results that are there

PICTURES has one folder per class, with a thousand pictures or more. The machine should do nothing else meanwhile: the
load before each section is in the results, and the page names sections beside which other programs ran. A rival's
interpreter is one that has `autogluon.multimodal` or `adaptshot`; who is missing is left out. `--runtime-python` is an
interpreter with `clipadapter[runtime]` alone: without it, no installed size is given.

The text is `speed_page.md`. A line `<!-- section NAME -->` begins the text of a section, and `${name}` in it is a value
of the section's function here. A section without results is left out of the page. In the summary, `${section_name}` is
a value of a section, and an item is left out if a section that it names has no results. To add a section: an entry of
SECTIONS with its command, whose JSON is a file (`JSON` among the arguments) or what it prints, a function from this
JSON to values, and a text. The page and its results are committed together: a test compares them.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import resource
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
TEMPLATE, RESULTS = FOLDER / "speed_page.md", FOLDER / "results" / "speed.json"
PAGE = ROOT / "docs" / "speed.md"
STAT = Path("/proc/stat")
PACKAGES = ("torch", "openvino", "onnxruntime", "open_clip_torch", "timm", "sentence-transformers", "numpy", "pillow")
JSON = "JSON"
"""The argument in whose place a command gets the path of its results."""
SUMMARY = "summary"
"""Section of the template with figures of the other sections."""
WATCH_SECONDS = 3
"""How long is watched, before a section begins, what other programs do."""
MAX_QUIET_LOAD = 0.3
"""Cores busy with other programs in that time, above which the page says that they were running."""
SECTION = re.compile(r"^<!-- section ([\w-]+) -->\n", re.MULTILINE)
Values = dict[str, str]
Results = dict[str, Any]


# ---- What a section's command may use ----


@dataclass(frozen=True)
class Setting:
    """Options of the run, and what several sections need, made when it is first used."""

    pictures: Path
    small: bool
    rivals: list[str]
    runtime_python: str
    work: Path

    def pick(self, usual: int, small: int) -> str:
        """A number for the command line."""
        return str(small if self.small else usual)

    @property
    def rival_options(self) -> list[str]:
        return [word for python in self.rivals for word in ("--rivals-python", python)]

    @cached_property
    def weights(self) -> Path:
        """A ViT-B/32 with random weights, which all programs read."""
        folder = self.work / ("vit-b-32-small" if self.small else "vit-b-32")
        if not folder.exists():
            import _rivals  # imports torch and open_clip, which writing the page does not need

            _rivals.write_open_clip(folder, layers=2 if self.small else None)
        return folder

    @cached_property
    def shots(self) -> Path:
        """Eight pictures of each class."""
        folder = self.work / f"shots-{self.pick(101, 3)}"
        if not folder.exists():
            from command_times import link_pictures

            link_pictures(self.pictures, folder, int(self.pick(101, 3)), shots=8, extra=1)
        return folder / "shots"

    @property
    def photo(self) -> str:
        return str(sorted(self.shots.parent.glob("more/*/*"))[0])

    @cached_property
    def exported(self) -> str:
        """A model of these shots as an ONNX file."""
        folder = Path(tempfile.mkdtemp(dir=self.work))
        for command in (
            ["fit", self.shots, "--encoder", "lite", "--out", folder / "model"],
            ["export", folder / "model", "--out", folder / "model.onnx"],
        ):
            subprocess.run([sys.executable, "-m", "clipadapter", *map(str, command)], check=True, capture_output=True)
        return str(folder / "model.onnx")

    @property
    def adaptshot(self) -> list[str]:
        import _rivals

        python = _rivals.interpreter_of("adaptshot", self.rivals)
        return [] if python is None else ["--rival-python", python]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: in the template, the results and ``--only``.
        commands: scripts of this folder with their arguments; the section's JSON is the list of what they give.
        values: from this list to the values of the template.
        minutes: limit of each command.
    """

    name: str
    commands: Callable[[Setting], list[list[str]]]
    values: Callable[[list[Results]], Values]
    minutes: float = 8


# ---- From results to values of the template ----


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def significant(value: float) -> str:
    """Two digits below 10, else whole numbers: "0.23", "2.3", "41", "1,234"."""
    if abs(value) >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 0.995 else f"{value:.2f}"


def times(ratio: dict[str, float]) -> str:
    """Median and range of a ratio."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def span(values: dict[str, float]) -> str:
    return f"{significant(values['low'])} to {significant(values['high'])}"


TITLES = {
    "open_clip, 0 workers": "open_clip and a DataLoader",
    "open_clip, 2 workers": "the same, two workers",
    "lite in timm, 0 workers": "timm and a DataLoader",
    "lite in timm, 2 workers": "the same, two workers",
}


def extract_values(name: str) -> Callable[[list[Results]], Values]:
    def values(results: list[Results]) -> Values:
        (result,) = results
        rows = []
        for row in result["tables"][name]:
            title = TITLES.get(row["name"], row["name"]).replace("openvino", "OpenVINO").replace(" auto:", " `auto`:")
            cells = [title, f"{row['rate']:.1f}", times(row["ratio"])]
            cells += [f"{row['mean']:.5f}", f"{row['least']:.4f}"] if "mean" in row else ["", ""]
            if name == "lite":
                cells.append("" if row.get("same") is None else f"{row['same']:.1%}")
            rows.append([*cells, "" if row["ready"] is None else f"{row['ready']:.1f} s"])
        titles = ["", "img/s", "ratio", "mean cosine", "min cosine", "setup"]
        if name == "lite":
            titles.insert(5, "same zero-shot answer")
        (ours,) = (row for row in result["tables"][name] if ", auto: " in row["name"])
        theirs = result["tables"][name][0]
        return {
            "table": table(titles, rows),
            "pictures": f"{result['pictures']:,}",
            "rounds": str(result["rounds"]),
            "chosen_for": f"{result['chosen_for']:,}",
            "chosen": ours["name"].partition("auto: ")[2].replace("openvino", "OpenVINO"),
            "ours": significant(ours["rate"]),
            "theirs": significant(theirs["rate"]),
            "ratio": f"{ours['ratio']['median']:.1f}",
        }

    return values


def pipeline_values(results: list[Results]) -> Values:
    rows = []
    for result in results:
        (row,) = result["rows"]
        name = "`lite`" if row["encoder"] == "lite" else "ViT-B/32"
        backend = row["backend"].replace("openvino", "OpenVINO")
        rates = [f"{row[side]['median']:.1f}" for side in ("memory", "files")]
        shares = [f"{row[share]['median']:.0%}" for share in ("share", "cpu_share")]
        rows.append([f"{name}, {backend} {row['precision']}", *rates, *shares])
    return {"table": table(["", "img/s from memory", "from files", "share", "share of processor time"], rows)}


def command_values(results: list[Results]) -> Values:
    (result,) = results
    rows = [
        [f"`{row['command']}`" if row["command"].startswith("--") else row["command"]]
        + [significant(row["seconds"]["median"]), span(row["seconds"])]
        + [significant(row["cpu"]["median"]), significant(row["mb"]["median"])]
        for row in result["rows"]
    ]
    seconds = {row["command"]: significant(row["seconds"]["median"]) for row in result["rows"]}
    return {
        "table": table(["", "seconds", "range", "processor s", "peak MB"], rows),
        "fit": seconds["fit, from pictures"],
        "stored": seconds["fit, stored features"],
        "predict": seconds["predict, one picture"],
        "pictures": f"{result['classes'] * result['shots']:,}",
        "classes": str(result["classes"]),
        "shots": str(result["shots"]),
        "rounds": str(result["rounds"]),
    }


def runtime_values(results: list[Results]) -> Values:
    (result,) = results
    titles = {
        "clipadapter, Python": "`clipadapter.runtime`, from Python",
        "clipadapter, shell": "`clipadapter predict model.onnx`, from the shell",
        "adaptshot, Python": "AdaptShot, from Python",
    }
    rows = [
        [titles[row["name"]], f"{row['seconds']['median']:.2f}", span(row["seconds"])]
        + [f"{row['mb']:.0f}", "" if row["installed_mb"] is None else f"{row['installed_mb']:.0f}"]
        for row in result["rows"]
    ]
    (shell,) = (row for row in result["rows"] if row["name"] == "clipadapter, shell")
    has_rival = any(row["name"].startswith("adaptshot") for row in result["rows"])
    return {
        "table": table(["", "seconds", "range", "peak MB", "installed MB"], rows),
        "runs": str(result["runs"]),
        "shell": f"{shell['seconds']['median']:.2f}",
        "rival": " AdaptShot learned the same pictures." if has_rival else "",
    }


def text_values(results: list[Results]) -> Values:
    (result,) = results
    rows = [
        [f"{row['tower']}, {row['prompts']} prompts of `{row['templates']}`"]
        + [f"{row['padded']:.2f}", f"{row['ours']:.2f}", times(row["ratio"])]
        for row in result["rows"]
    ]
    return {"table": table(["", "padded s", "ours s", "ratio"], rows)}


LOOPS = {
    "paper-adam": "the paper's loop (Adam, 1e-5)",
    "paper-sgd": "the same with SGD",
    "released": "the settings of the released code (SGD, 2e-3, second ReLU)",
    "adamw": "AdamW, 1e-3 (not published)",
}


def fit_values(results: list[Results]) -> Values:
    whole = results[0]
    rows = []
    for row in whole["rows"]:
        for title, side in ((LOOPS[row["loop"]], row["theirs"]), ("`ClipAdapter`", row["ours"])):
            ratio = "" if side is row["theirs"] else f"{row['cpu']:.0f}"
            rows.append([title, significant(side["cpu"]), ratio, f"{side['loss']:.3f}", f"{side['accuracy']:.1f}"])
    values = {"table": table(["", "processor s", "ratio", "training loss", "held-out accuracy"], rows)}
    for name, result in zip(("size", "large_size"), results, strict=True):
        values[name] = " x ".join(str(result["size"][key]) for key in ("classes", "shots", "width"))
    large = [f"{significant(row['cpu'])} times as fast as {LOOPS[row['loop']]}" for row in results[1]["rows"]]
    return values | {"large": " and ".join(large)}


def study_values(results: list[Results]) -> Values:
    (result,) = results
    heads = sorted(result["heads"].items(), key=lambda item: -item[1])
    size = result["size"]
    return {
        "seconds": f"{result['seconds']:.0f}",
        "runs": str(result["runs"]),
        "heads": str(len(heads)),
        "busy": f"{result['busy']:.0%}",
        "workers": str(result["workers"]),
        "size": f"{size['classes']} classes of width {size['width']}, {len(size['shots'])} numbers of shots, "
        f"{size['seeds']} draws",
        "slowest": ", ".join(f"`{name}` {seconds:.1f}" for name, seconds in heads[:6]),
    }


def store_values(results: list[Results]) -> Values:
    (result,) = results
    rows = [
        [row["work"], f"{row['plain']:,.0f}", f"{row['store']:,.0f}", times(row["ratio"])] for row in result["rows"]
    ]
    whole = result["whole"]
    return {
        "table": table(["", "sqlite3, rows/s", "the store, rows/s", "ratio"], rows),
        "vectors": f"{result['vectors']:,}",
        "width": str(result["width"]),
        "open": f"{whole['open_ms']:.1f}",
        "memory": f"{whole['items_mb']:.0f}",
    }


def class_values(results: list[Results]) -> Values:
    rows = []
    auto = next(row for result in results for row in result["rows"] if row["head"] == "auto")
    cost = auto["error"] if "error" in auto else f"{significant(auto['fit s'])} s, {significant(auto['peak MB'])} MB"
    for result in results:
        for row in result["rows"]:
            cells = [row["error"], "", ""] if "error" in row else [significant(row["fit s"])]
            cells += [] if "error" in row else [significant(row["predict s"]), significant(row["peak MB"])]
            rows.append([f"`{row['head']}`", row["size"].replace("x", " x "), *cells])
    return {
        "table": table(["", "classes x shots x width", "fit s", "predict s", "peak MB"], rows),
        "queries": f"{results[0]['queries']:,}",
        "size": auto["size"].replace("x", " x "),
        "cost": cost,
    }


def predict_values(results: list[Results]) -> Values:
    (result,) = results
    rows = [
        [row["name"], f"{row['n']:,}", significant(row["rate"]), significant(row["cpu"])]
        + [significant(row["peak_mb"]) if row["peak_mb"] else "", f"{row['share']:.2f}" if "share" in row else ""]
        for row in result["rows"]
    ]
    rates = {row["name"]: significant(row["rate"]) for row in result["rows"]}
    return {
        "table": table(["", "pictures or rows", "per second", "processor s", "peak MB", "share of embed"], rows),
        "pictures": rates["predict, Parquet"],
        "rows": rates["Parquet to Parquet, 100 classes"],
    }


def rows_values(results: list[Results]) -> Values:
    """For a script whose JSON has flat "rows": a table with a column per field."""
    rows = [row for result in results for row in result["rows"]]
    return {"table": table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows])}


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return times(value)
    return significant(value) if isinstance(value, float) else str(value)


# ---- The sections, in the order of the page ----


def extract_command(setting: Setting, only: str, count: int) -> list[list[str]]:
    options = ["--count", setting.pick(count, 8), "--rounds", setting.pick(3, 1), "--json", JSON]
    options += ["--choose-for", setting.pick(1000, 8), "--weights", str(setting.weights), "--only", only]
    return [["extract_speed.py", str(setting.pictures), *options, *setting.rival_options]]


def pipeline_commands(setting: Setting) -> list[list[str]]:
    vit = f"open_clip:local-dir:{setting.weights}"
    kinds = [(vit, "torch", "fp32", 96), (vit, "openvino", "bf16", 160), (vit, "openvino", "int8", 160)]
    kinds += [("lite", "openvino", "fp32", 320)]
    return [
        ["pipeline_speed.py", str(setting.pictures), "--encoder", encoder, "--backend", backend]
        + ["--precision", precision, "--count", setting.pick(count, 8), "--repeats", setting.pick(3, 1), "--json", JSON]
        for encoder, backend, precision, count in (kinds[-1:] if setting.small else kinds)
    ]


def fit_commands(setting: Setting) -> list[list[str]]:
    loops = ["--loops", "paper-adam", "released", "--json", JSON]
    if setting.small:
        tiny = ["clip_adapter_fit.py", "--classes", "10", "--shots", "4", "--dim", "64", "--run", "2", *loops]
        return [tiny, tiny]
    return [
        ["clip_adapter_fit.py", "--classes", "100", "--shots", "16", "--dim", "512", *loops],
        ["clip_adapter_fit.py", "--classes", "1000", "--shots", "16", "--dim", "1024", "--run", "2", *loops],
    ]


SECTIONS = [
    Section("extract", lambda setting: extract_command(setting, "ViT-B/32", 256), extract_values("ViT-B/32"), 20),
    Section("lite", lambda setting: extract_command(setting, "lite", 320), extract_values("lite"), 20),
    Section("pipeline", pipeline_commands, pipeline_values),
    Section(
        "commands",
        lambda setting: [
            ["command_times.py", str(setting.pictures), "--classes", setting.pick(101, 3), "--json", JSON]
            + ["--shots", setting.pick(8, 4), "--rounds", setting.pick(3, 1)]
            + (["--no-warm-up"] if setting.small else [])
        ],
        command_values,
        15,
    ),
    Section(
        "predict",
        lambda setting: [
            ["predict_speed.py", str(setting.pictures), "--count", setting.pick(2000, 8), "--json", JSON]
            + ["--rows", setting.pick(200_000, 1000)]
        ],
        predict_values,
    ),
    Section(
        "runtime",
        lambda setting: [
            ["runtime_rivals.py", setting.exported, str(setting.shots), setting.photo, *setting.adaptshot]
            + ["--python", setting.runtime_python, "--runs", setting.pick(9, 1), "--json", JSON]
        ],
        runtime_values,
    ),
    Section(
        "text",
        lambda setting: [
            ["text_speed.py", "--templates", "imagenet7", "--prompts", setting.pick(40, 2), "--json", JSON]
            + ["--rounds", setting.pick(5, 1)]
        ],
        text_values,
    ),
    Section("fit", fit_commands, fit_values),
    Section(
        "study",
        lambda setting: [
            ["study_speed.py", "--json", JSON]
            + (["gda", "--shots", "1", "--seeds", "1", "--classes", "10", "--width", "64"] if setting.small else [])
        ],
        study_values,
    ),
    Section(
        "classes",
        lambda setting: [
            ["many_classes.py", "gda", "tip-adapter", "linear-probe", "clip-adapter", "auto", "--json", JSON]
            + ["--limit-seconds", "300"]
            + (["--size", "10x2x16"] if setting.small else []),
        ],
        class_values,
        30,
    ),
    Section(
        "store",
        lambda setting: [
            ["store_speed.py", "--rows", setting.pick(30_000, 1000), "--repeats", setting.pick(5, 1), "--json", JSON]
        ],
        store_values,
    ),
]


# ---- Measuring ----


def measure(section: Section, setting: Setting) -> Results:
    """Run the commands of a section one after the other.

    Raises:
        RuntimeError: a command failed, took longer than its limit, or gave no JSON.
    """
    load = busy_cores()
    start, cpu = time.perf_counter(), _cpu_of_children()
    results = [_run(command, section.minutes) for command in section.commands(setting)]
    return {
        "results": results,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(_cpu_of_children() - cpu, 1),
        "load": round(load, 2),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "small": setting.small,
    }


def busy_cores() -> float:
    """Cores that were busy during `WATCH_SECONDS`, of Linux's count; elsewhere the load over the last minute."""
    if not STAT.exists():
        return os.getloadavg()[0]
    before = _busy_seconds()
    time.sleep(WATCH_SECONDS)
    return (_busy_seconds() - before) / WATCH_SECONDS


def _busy_seconds() -> float:
    """Of all cores since the start of the machine, without waiting for disks."""
    user, nice, system, _, _, *rest = map(int, STAT.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run(command: list[str], minutes: float) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        arguments = [str(out) if word == JSON else word for word in command]
        script = FOLDER / arguments[0]
        if not script.exists():
            raise FileNotFoundError(f"there is no {script.name}")
        try:
            done = subprocess.run(
                [sys.executable, str(script), *arguments[1:]],
                capture_output=True,
                text=True,
                timeout=60 * minutes,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{command[0]} took longer than {minutes:g} minutes") from error
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        text = out.read_text(encoding="utf-8") if out.exists() else done.stdout[done.stdout.find("{") :]
        for line in done.stdout.splitlines():
            if line.startswith("left out"):
                print(" ", line)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RuntimeError(f"{command[0]} gave no JSON but {text[:200]!r}") from error


def commit() -> str:
    """The short name of the commit, with a + if files differ from it."""
    git = ["git", "-C", str(ROOT)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "src"], capture_output=True, text=True, check=False)
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")


def machine() -> str:
    """Processor, cores, and the instructions that decide which precision is fast."""
    model, flags = platform.processor() or platform.machine(), []
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = dict(line.split(":", 1) for line in cpu.read_text().splitlines() if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        model = re.sub(r"\((R|TM)\)", "", lines.get("model name", model))
        wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
        flags = [flag for flag in wanted if flag in lines.get("flags", "").split()]
    return f"{' '.join(model.split())}, {os.cpu_count()} cores" + (f", {', '.join(flags)}" if flags else "")


def versions() -> str:
    names = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            names.append(f"{package.removesuffix('_torch')} {importlib.metadata.version(package).partition('+')[0]}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(names)


# ---- Writing the page ----


def write_page(results: Results) -> str:
    """The template with the values of all sections that have results."""
    head, *parts = SECTION.split(TEMPLATE.read_text(encoding="utf-8"))
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    sections = {section.name: section for section in SECTIONS}
    measured = {name: results[name] for name in texts if name in results and name in sections}
    if not measured:
        raise SystemExit("there are no results: run without --write-only first")
    facts = [(each["machine"], each["versions"]) for each in measured.values()]
    main_facts = max(facts, key=facts.count)
    dates = sorted({each["date"] for each in measured.values()})
    about = {
        "machine": main_facts[0],
        "versions": main_facts[1],
        "dates": dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}",
        "commits": ", ".join(dict.fromkeys(each["commit"] for each in measured.values())),
        "minutes": f"{sum(each['seconds'] for each in measured.values()) / 60:.0f}",
    }
    values = {name: sections[name].values(one["results"]) for name, one in measured.items()}
    page = [head]
    for name, text in texts.items():
        if name == SUMMARY:
            page.append(_fill_summary(text, values))
        elif name not in sections:  # text alone
            page.append(string.Template(text).substitute(about))
        elif name in measured:
            one = measured[name]
            page.append(string.Template(text).substitute(values[name]))
            notes = []
            if one["machine"] != main_facts[0]:
                notes.append(f"measured on another machine ({one['machine']})")
            if one["load"] > MAX_QUIET_LOAD:
                notes.append(f"other programs were running ({one['load']:.1f} cores were busy before it began)")
            if one["small"]:
                notes.append("measured in the smallest form")
            if notes:
                page.append(f"\nThis section: {'; '.join(notes)}.\n")
    return "".join(_apart(page))


def _fill_summary(text: str, values: dict[str, Values]) -> str:
    """The items of the summary whose sections have results."""
    known = {f"{name}_{key}": value for name, some in values.items() for key, value in some.items()}
    items = []
    for item in re.split(r"^(?=- )", text, flags=re.MULTILINE):
        with contextlib.suppress(KeyError):
            items.append(string.Template(item).substitute(known))
    return "".join(items)


def _apart(parts: Iterable[str]) -> Iterable[str]:
    """Parts that end with one line break, with an empty line between them."""
    for i, part in enumerate(parts):
        yield ("\n" if i else "") + part.strip("\n") + "\n"


def save(path: Path, results: Results) -> None:
    """Write the JSON file in one step, so that a stopped run leaves the results of before."""
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="?", help="a folder of class folders")
    parser.add_argument("--small", action="store_true", help="smallest form of every section; results go to --work")
    parser.add_argument("--only", action="append", choices=[section.name for section in SECTIONS])
    parser.add_argument("--resume", action="store_true", help="leave out what this commit measured on this machine")
    parser.add_argument("--write-only", action="store_true", help="measure nothing")
    parser.add_argument("--rivals-python", action="append", default=[], help="an interpreter; may be given again")
    parser.add_argument("--runtime-python", default=sys.executable, help="one with clipadapter[runtime] alone")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "clipadapter-speed")
    parser.add_argument("--results", type=Path, help=f"default: {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--page", type=Path, help=f"default: {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    results_path = args.results or (args.work / "speed.json" if args.small else RESULTS)
    page = args.page or (args.work / "speed.md" if args.small else PAGE)
    results = json.loads(results_path.read_text(encoding="utf-8")) if results_path.exists() else {}
    failed = []
    if not args.write_only:
        if args.pictures is None:
            parser.error("PICTURES is missing: a folder with one folder of pictures per class")
        setting = Setting(
            args.pictures.resolve(), args.small, args.rivals_python, args.runtime_python, args.work.resolve()
        )
        for section in SECTIONS:
            if args.only and section.name not in args.only:
                continue
            old = results.get(section.name, {})
            if args.resume and (old.get("commit"), old.get("machine"), old.get("small")) == (
                commit(),
                machine(),
                args.small,
            ):
                print(f"{section.name}: is there")
                continue
            print(f"{section.name} ...", flush=True)
            try:
                results[section.name] = measure(section, setting)
            except FileNotFoundError as error:
                print(f"{section.name}: left out, {error}")
                continue
            except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                failed.append(section.name)
                print(f"{section.name} failed: {error}", flush=True)
                continue
            save(results_path, results)
            print(
                f"{section.name}: {results[section.name]['seconds']:.0f} s, "
                f"{results[section.name]['cpu_seconds']:.0f} s of processors",
                flush=True,
            )
    page.write_text(write_page(results), encoding="utf-8")
    print(f"wrote {page}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; their older results stay")


if __name__ == "__main__":
    main()
