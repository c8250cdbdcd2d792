"""What the benchmarks of speed share: rounds in turns, processes of their own, and results as JSON.

pytest-benchmark (see gpu.py) runs all rounds of one function before those of the next, in one process. Ratios need
rounds in turns, so that other programs slow both sides; peak memory and imports need a process for each row. Hence the
loops of the scripts and these few functions.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from clipadapter.utils.files import IMAGE_SUFFIXES

T = TypeVar("T")


def script_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with ``--json FILE``, whose help is the text of the script."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file, as JSON")
    return parser


def write_json(path: Path | None, **results: Any) -> None:
    """Write the results, if ``--json`` was used; numbers of numpy and torch become plain ones."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1, default=float) + "\n", encoding="utf-8")


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows as Markdown; medians have their range in brackets."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(_cell(row.get(name)) for name in columns)} |")


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return f"{_cell(value['median'])} ({_cell(value['low'])} to {_cell(value['high'])})"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else str(value)


def summarise(values: Iterable[float]) -> dict[str, float]:
    """Median, lowest and highest value of the rounds."""
    values = list(values)
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(reference: Iterable[float], seconds: Iterable[float]) -> dict[str, float]:
    """How many times as fast, round by round: other programs slow both sides of a round."""
    return summarise(a / b for a, b in zip(reference, seconds, strict=True))


def timed(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What one call returns, and the seconds of the clock and of the processor that it takes."""
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def run_command(
    command: list[str], environment: dict[str, str] | None = None, status: int = 0, output: Path | None = None
) -> dict[str, float]:
    """Seconds, seconds of the processor and peak MB of a command, by GNU time.

    `os.wait4` would give the memory of this process where the command needs less. Bytecode is written: without it, each
    import compiles its file again.

    Args:
        command: of a user.
        environment: what is added to that of this process.
        status: it ends with.
        output: file for what it prints.

    Raises:
        SystemExit: the command ended with another status.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.NamedTemporaryFile("r") as usage, (output or Path(os.devnull)).open("w") as stdout:
        start = time.perf_counter()
        done = subprocess.run(
            ["/usr/bin/time", "--quiet", "--format=%U %S %M", f"--output={usage.name}", *command],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env=inherited | (environment or {}),
            check=False,
        )
        seconds = time.perf_counter() - start
        if done.returncode != status:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        user, system, kilobytes = map(float, usage.read().split())
    return {"seconds": seconds, "cpu": user + system, "mb": kilobytes / 1024}


def peak_mb() -> float:
    """Highest resident memory of this process so far; Linux counts in KB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def find_pictures(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SystemExit(f"no pictures in {folder}")
    return paths


def copy_pictures(paths: list[Path], count: int, folder: Path) -> list[Path]:
    """As many different pictures in one folder: bytes after the end of a picture make it another one."""
    folder.mkdir()
    copies = [folder / f"{i:06}{paths[i % len(paths)].suffix}" for i in range(count)]
    for i, copy in enumerate(copies):
        copy.write_bytes(paths[i % len(paths)].read_bytes() + i.to_bytes(4, "big"))
    return copies
