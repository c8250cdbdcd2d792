"""docs/speed.md anew: runs the benchmarks of speed, keeps their results as one JSON file, writes the page from both.

    python benchmarks/speed/speed_page.py PICTURES --rivals-python A/bin/python --rivals-python B/bin/python
    python benchmarks/speed/speed_page.py PICTURES --small        # smallest form of each section; no page
    python benchmarks/speed/speed_page.py PICTURES --only store   # one section; the others stay as they are
    python benchmarks/speed/speed_page.py --write-only            # the page from the results that are there

PICTURES has one folder per class, with a thousand pictures or more. The machine should do nothing else meanwhile: the
load before each section is in the results, and the page names sections beside which other programs ran. A rival's
interpreter is one that has `autogluon.multimodal` or `adaptshot`; who is missing is left out. `--runtime-python` is an
interpreter with `clipadapter[runtime]` alone: without it, no installed size is given.

The text is `speed_page.md`, a Jinja template. A line `<!-- section NAME -->` begins a section. `results` is the JSON of
its commands, and `result` that of the first. A section without results is left out of the page. The summary has the
`results` of each section under its name; an item is left out if a section that it names has no results. To add a
section: an entry of SECTIONS with its commands, which take `--json FILE`, and a text. The page and its results are
committed together: a test compares them.
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
import shlex
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
SUMMARY = "summary"
"""Section of the template with figures of the other sections."""
WATCH_SECONDS = 3
"""How long is watched, before a section begins, what other programs do."""
MAX_QUIET_LOAD = 0.3
"""Cores busy with other programs in that time, above which the page says that they were running."""
SECTION_SECONDS = 30 * 60
"""Limit of a command."""
SECTION = re.compile(r"^<!-- section ([\w-]+) -->\n", re.MULTILINE)
Results = dict[str, Any]


# ---- What a section's command may use ----


@dataclass(frozen=True)
class Setting:
    """Options of the run, and what several sections need, made when it is first used; paths as words of a command."""

    source: Path
    is_small: bool
    rivals: list[str]
    runtime_python: str
    work: Path

    def pick(self, usual: object, small: object) -> object:
        return small if self.is_small else usual

    @property
    def pictures(self) -> str:
        return shlex.quote(str(self.source))

    @property
    def rival_options(self) -> str:
        return shlex.join(word for python in self.rivals for word in ("--rivals-python", python))

    @cached_property
    def weights(self) -> str:
        """A ViT-B/32 with random weights, which all programs read."""
        folder = self.work / ("vit-b-32-small" if self.is_small else "vit-b-32")
        if not folder.exists():
            import _rivals  # imports torch and open_clip, which writing the page does not need

            _rivals.write_open_clip(folder, layers=2 if self.is_small else None)
        return shlex.quote(str(folder))

    @cached_property
    def shots(self) -> Path:
        """Eight pictures of each class."""
        count = 3 if self.is_small else 101
        folder = self.work / f"shots-{count}"
        if not folder.exists():
            from command_times import link_pictures

            link_pictures(self.source, folder, count, shots=8, extra=1)
        return folder / "shots"

    @cached_property
    def runtime_words(self) -> str:
        """A model of these shots as an ONNX file, the shots, one more picture, and AdaptShot's interpreter."""
        import _rivals

        folder = Path(tempfile.mkdtemp(dir=self.work))
        for command in (
            ["fit", self.shots, "--encoder", "lite", "--out", folder / "model"],
            ["export", folder / "model", "--out", folder / "model.onnx"],
        ):
            subprocess.run([sys.executable, "-m", "clipadapter", *map(str, command)], check=True, capture_output=True)
        photo = sorted(self.shots.parent.glob("more/*/*"))[0]
        python = _rivals.interpreter_of("adaptshot", self.rivals)
        words = [str(folder / "model.onnx"), str(self.shots), str(photo), "--python", self.runtime_python]
        return shlex.join([*words, *([] if python is None else ["--rival-python", python])])


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


def extract_command(s: Setting, only: str, count: int) -> list[str]:
    options = f"--count {s.pick(count, 8)} --rounds {s.pick(3, 1)} --choose-for {s.pick(1000, 8)} --only {only}"
    return [f"extract_speed.py {s.pictures} {options} --weights {s.weights} {s.rival_options}"]


def pipeline_commands(s: Setting) -> list[str]:
    vit = f"--encoder open_clip:local-dir:{s.weights}"
    kinds = [
        f"{vit} --backend torch --precision fp32 --count {s.pick(96, 8)}",
        f"{vit} --backend openvino --precision bf16 --count {s.pick(160, 8)}",
        f"{vit} --backend openvino --precision int8 --count {s.pick(160, 8)}",
        f"--encoder lite --backend openvino --precision fp32 --count {s.pick(320, 8)}",
    ]
    return [f"pipeline_speed.py {s.pictures} --repeats {s.pick(3, 1)} {kind}" for kind in kinds[-s.pick(4, 1) :]]


def fit_commands(s: Setting) -> list[str]:
    sizes = s.pick(
        ["--classes 100 --shots 16 --dim 512", "--classes 1000 --shots 16 --dim 1024 --run 2"],
        ["--classes 10 --shots 4 --dim 64 --run 2"] * 2,
    )
    return [f"clip_adapter_fit.py {size} --loops paper-adam released" for size in sizes]


SECTIONS: dict[str, Callable[[Setting], list[str]]] = {
    "extract": lambda s: extract_command(s, "ViT-B/32", 256),
    "lite": lambda s: extract_command(s, "lite", 320),
    "pipeline": pipeline_commands,
    "commands": lambda s: [
        f"command_times.py {s.pictures} "
        + s.pick("--classes 101 --shots 8 --rounds 3", "--classes 3 --shots 4 --rounds 1 --no-warm-up")
    ],
    "predict": lambda s: [f"predict_speed.py {s.pictures} --count {s.pick(2000, 8)} --rows {s.pick(200_000, 1000)}"],
    "runtime": lambda s: [f"runtime_rivals.py {s.runtime_words} --runs {s.pick(9, 1)}"],
    "text": lambda s: [f"text_speed.py --templates imagenet7 --prompts {s.pick(40, 2)} --rounds {s.pick(5, 1)}"],
    "fit": fit_commands,
    "study": lambda s: ["study_speed.py " + s.pick("", "gda --shots 1 --seeds 1 --classes 10 --width 64")],
    "classes": lambda s: [
        "head_costs.py gda tip-adapter linear-probe clip-adapter auto --features hard "
        + s.pick("--size 10000x4x512 --size 1000x100x768", "--size 10x2x16")
    ],
    "store": lambda s: [f"store_speed.py --rows {s.pick(30_000, 1000)} --repeats {s.pick(5, 1)}"],
}


# ---- Measuring ----


def measure(name: str, setting: Setting) -> Results:
    """Run the commands of a section one after the other.

    Raises:
        RuntimeError: a command failed.
        subprocess.TimeoutExpired: it took longer than the limit.
    """
    load = busy_cores()
    start, cpu = time.perf_counter(), _cpu_of_children()
    results = [_run(command) for command in SECTIONS[name](setting)]
    return {
        "results": results,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(_cpu_of_children() - cpu, 1),
        "load": round(load, 2),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "small": setting.is_small,
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


def _run(command: str) -> Results:
    script, *arguments = shlex.split(command)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        words = [sys.executable, str(FOLDER / script), *arguments, "--json", str(out)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECTION_SECONDS, check=False)
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        print(*(f"  {line}" for line in done.stdout.splitlines() if line.startswith("left out")), sep="\n")
        return json.loads(out.read_text(encoding="utf-8"))


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
    measured = {name: results[name] for name in texts if name in results and name in SECTIONS}
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
        elif name not in SECTIONS:  # text alone
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="?", help="a folder of class folders")
    parser.add_argument("--small", action="store_true", help="smallest form of every section; results go to --work")
    parser.add_argument("--only", action="append", choices=list(SECTIONS))
    parser.add_argument("--write-only", action="store_true", help="measure nothing")
    parser.add_argument("--rivals-python", action="append", default=[], help="an interpreter; may be given again")
    parser.add_argument("--runtime-python", default=sys.executable, help="one with clipadapter[runtime] alone")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "clipadapter-speed")
    parser.add_argument("--results", type=Path, help=f"default: {RESULTS.relative_to(ROOT)}")
    parser.add_argument("--page", type=Path, help=f"default: {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    if args.pictures is None and not args.write_only:
        parser.error("PICTURES is missing: a folder with one folder of pictures per class")
    args.work.mkdir(parents=True, exist_ok=True)
    results_path = args.results or (args.work / "speed.json" if args.small else RESULTS)
    page = args.page or (args.work / "speed.md" if args.small else PAGE)
    results = json.loads(results_path.read_text(encoding="utf-8")) if results_path.exists() else {}
    failed = []
    for name in [] if args.write_only else args.only or SECTIONS:
        setting = Setting(args.pictures, args.small, args.rivals_python, args.runtime_python, args.work)
        print(f"{name} ...", flush=True)
        try:
            results[name] = measure(name, setting)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            failed.append(name)
            print(f"{name} failed: {error}", flush=True)
            continue
        print(f"{results[name]['seconds']:.0f} s, {results[name]['cpu_seconds']:.0f} s of processors", flush=True)
        partial = results_path.with_suffix(".part")  # a stopped run leaves the results of before
        partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        partial.replace(results_path)
    page.write_text(write_page(results), encoding="utf-8")
    print(f"wrote {page}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; their older results stay")


if __name__ == "__main__":
    main()
