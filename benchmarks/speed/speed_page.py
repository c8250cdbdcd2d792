"""docs/speed.md anew: runs the benchmarks of speed, keeps their results as one JSON file, writes the page from both.

    python benchmarks/speed/speed_page.py PICTURES --rivals-python A/bin/python --rivals-python B/bin/python
    python benchmarks/speed/speed_page.py PICTURES --small        # smallest form of each section; no page
    python benchmarks/speed/speed_page.py PICTURES --only store   # one section; the others stay as they are
    python benchmarks/speed/speed_page.py PICTURES --resume       # what this commit has not measured here yet
    python benchmarks/speed/speed_page.py --write-only            # the page from the results that are there

PICTURES has one folder per class, with a thousand pictures or more. The machine should do nothing else meanwhile: the
load before each section is in the results, and the page names sections beside which other programs ran. A rival's
interpreter is one that has `autogluon.multimodal` or `adaptshot`; who is missing is left out. `--runtime-python` is an
interpreter with `clipadapter[runtime]` alone: without it, no installed size is given.

The text is `speed_page.md`, a Jinja template. A line `<!-- section NAME -->` begins a section. `results` is the JSON of
its commands, and `result` that of the first. A section without results is left out of the page. The summary has the
`results` of each section under its name; an item is left out if a section that it names has no results. To add a
section: an entry of SECTIONS with its command, whose JSON is a file (`JSON` among the arguments) or what it prints, and
a text. The page and its results are committed together: a test compares them.
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
TEMPLATE, RESULTS = FOLDER / "speed_page.md", FOLDER.parent / "results" / "speed.json"
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
        minutes: limit of each command.
    """

    name: str
    commands: Callable[[Setting], list[list[str]]]
    minutes: float = 8


# ---- What the template may use ----


def significant(value: float) -> str:
    """Two digits below 10, else whole numbers: "0.23", "2.3", "41", "1,234"."""
    if abs(value) >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 0.995 else f"{value:.2f}"


def ratio(values: dict[str, float]) -> str:
    """Median and range of a ratio."""
    return f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"


def span(values: dict[str, float]) -> str:
    return f"{significant(values['low'])} to {significant(values['high'])}"


def row_of(rows: Sequence[Results], text: str) -> Results:
    """The last row whose first field is this text, or else contains it."""
    names = [str(next(iter(row.values()))) for row in rows]
    chosen = [row for row, name in zip(rows, names, strict=True) if name == text]
    return (chosen or [row for row, name in zip(rows, names, strict=True) if text in name])[-1]


def environment() -> jinja2.Environment:
    """Of the template; a value that is missing is an error."""
    made = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters.update(significant=significant, ratio=ratio, span=span, form=lambda value, form: format(value, form))
    made.filters["words"] = lambda text: text.replace("openvino", "OpenVINO").replace(" auto:", " `auto`:")
    made.globals["row_of"] = row_of
    return made


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
    Section("extract", lambda setting: extract_command(setting, "ViT-B/32", 256), 20),
    Section("lite", lambda setting: extract_command(setting, "lite", 320), 20),
    Section("pipeline", pipeline_commands),
    Section(
        "commands",
        lambda setting: [
            ["command_times.py", str(setting.pictures), "--classes", setting.pick(101, 3), "--json", JSON]
            + ["--shots", setting.pick(8, 4), "--rounds", setting.pick(3, 1)]
            + (["--no-warm-up"] if setting.small else [])
        ],
        15,
    ),
    Section(
        "predict",
        lambda setting: [
            ["predict_speed.py", str(setting.pictures), "--count", setting.pick(2000, 8), "--json", JSON]
            + ["--rows", setting.pick(200_000, 1000)]
        ],
    ),
    Section(
        "runtime",
        lambda setting: [
            ["runtime_rivals.py", setting.exported, str(setting.shots), setting.photo, *setting.adaptshot]
            + ["--python", setting.runtime_python, "--runs", setting.pick(9, 1), "--json", JSON]
        ],
    ),
    Section(
        "text",
        lambda setting: [
            ["text_speed.py", "--templates", "imagenet7", "--prompts", setting.pick(40, 2), "--json", JSON]
            + ["--rounds", setting.pick(5, 1)]
        ],
    ),
    Section("fit", fit_commands),
    Section(
        "study",
        lambda setting: [
            ["study_speed.py", "--json", JSON]
            + (["gda", "--shots", "1", "--seeds", "1", "--classes", "10", "--width", "64"] if setting.small else [])
        ],
    ),
    Section(
        "classes",
        lambda setting: [
            ["many_classes.py", "gda", "tip-adapter", "linear-probe", "clip-adapter", "auto", "--json", JSON]
            + ["--limit-seconds", "300"]
            + (["--size", "10x2x16"] if setting.small else []),
        ],
        30,
    ),
    Section(
        "store",
        lambda setting: [
            ["store_speed.py", "--rows", setting.pick(30_000, 1000), "--repeats", setting.pick(5, 1), "--json", JSON]
        ],
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
    """The template with the results of all sections that have some."""
    head, *parts = SECTION.split(TEMPLATE.read_text(encoding="utf-8"))
    texts = dict(zip(parts[::2], parts[1::2], strict=True))
    sections = {section.name for section in SECTIONS}
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
    render = environment().from_string
    page = [head]
    for name, text in texts.items():
        if name == SUMMARY:
            page.append(_summary(text, {other: one["results"] for other, one in measured.items()}))
        elif name not in sections:  # text alone
            page.append(render(text).render(about))
        elif name in measured:
            one = measured[name]
            page.append(render(text).render(results=one["results"], result=one["results"][0]))
            page.append(_notes(one, main_facts[0]))
    return "".join(_apart(page))


def _summary(text: str, values: Results) -> str:
    """The items of the summary whose sections have results."""
    items, render = [], environment().from_string
    for item in re.split(r"^(?=- )", text, flags=re.MULTILINE):
        with contextlib.suppress(jinja2.UndefinedError):
            items.append(render(item).render(values) + "\n")
    return "".join(items)


def _notes(section: Results, main_machine: str) -> str:
    """In what a section was measured otherwise than the page says."""
    notes = []
    if section["machine"] != main_machine:
        notes.append(f"measured on another machine ({section['machine']})")
    if section["load"] > MAX_QUIET_LOAD:
        notes.append(f"other programs were running ({section['load']:.1f} cores were busy before it began)")
    if section["small"]:
        notes.append("measured in the smallest form")
    return f"This section: {'; '.join(notes)}." if notes else ""


def _apart(parts: Iterable[str]) -> Iterable[str]:
    """Parts that end with one line break, with an empty line between them."""
    for i, part in enumerate(filter(None, parts)):
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
