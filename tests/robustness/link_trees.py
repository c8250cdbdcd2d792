"""Puts links, pipes and odd names into copies of the program's own folders, and opens these by commands.

Usage: link_trees.py FOLDER COUNT SEED. Beside each copy is a folder that links lead to. A third of the commands that
take such a folder, drawn for each tree, open a copy of it. It writes how many trees were made, how often each command
worked or refused, and what was wrong: a byte or name that changed outside, or an error that is not of the program.
"""

import json
import os
import random
import shutil
import signal
import sys
import warnings
from collections import Counter
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from own_folders import COMMANDS, HEX, OWN_FOLDERS, enter, make_templates, open_shards, prepare_commands, run

from clipadapter.errors import ClipAdapterError

RANDOM = "abcd_123"
OWN_NAMES = {
    "studio": f"""lock journal.jsonl class_names.json settings.json incoming incoming/1 incoming/9 unlabelled trash
        trash/9 unlabelled/1.png uploads uploads/{HEX}{HEX} export export/{HEX} .settings.json-{RANDOM} ../train
        ../train/red incoming/9/.{HEX[:20]}-{RANDOM}""",
    "model": """config.json README.md arrays history mine arrays/.lock arrays/new-config.json arrays/new-README.md
        arrays/new-file arrays/head-0000000000000000.safetensors history/log-0000000000000000.json
        history/config-0000000000000000.json""",
    "parts": f"""run.json lock 00000000-1-0-{HEX}-{HEX}.csv .00000000-1-0-{HEX}.csv .joined.csv mine
        .run.json-{RANDOM}""",
    "bench": f"""runs.jsonl .runs.jsonl.lock plans plans/own.json features mine reports
        features/{HEX} features/.{HEX}-{RANDOM} figures""",
    "store": f"""features.sqlite features.sqlite-wal features.sqlite-shm features.sqlite-journal shards/shards.json
        shards/{HEX}.parquet shards/.{HEX}.partial shards/mine table.parquet .table.parquet.{os.getpid()}.partial""",
    "results": f"""runs.jsonl table.md accuracy.png answers.png metrics.json confusion.png model model/config.json
        sorted sorted/red sorted/red/0.ppm sorted/none exported.onnx .exported.onnx-{RANDOM} log.jsonl table.parquet
        .exported.onnx-{RANDOM}/.clipadapter-export.lock .exported.onnx-{RANDOM}/mine
        .table.parquet.{os.getpid()}.partial .runs.jsonl-{RANDOM} .log.jsonl-{RANDOM}""",
}
MOVED = ["link", "x", "x/y", "train/red/0.ppm", ".studio", ".studio/incoming/2", ".studio/settings.json", "../home/z"]
"""Ends of moves of a journal."""


def make_home(home, template):
    """What a person has outside: a folder like ours, our names with another content, and other files."""
    shutil.copytree(template, home, symlinks=True)
    for name in [
        *" ".join(OWN_NAMES.values()).split(),
        "thesis.tex",
        ".bashrc",
        ".ssh/id_rsa",
        f".{HEX}.json-{RANDOM}",
    ]:
        with suppress(OSError):  # a folder of that name, or a file in place of its folder
            (home / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
            (home / "mine" / name).write_text('{"format":2, mine without an end of line')
            os.utime(home / "mine" / name, (1e9, 1e9))
    for path in (home / "mine").iterdir():
        if not os.path.lexists(home / path.name):
            path.rename(home / path.name)


def listing(folder):
    """Kind, time and content of everything below a folder."""
    entries = {}
    for path in folder.rglob("*"):
        is_file = path.is_file()
        content = blake2b(path.read_bytes()).hexdigest() if is_file else ""
        entries[str(path)] = (content, path.lstat().st_mtime_ns if is_file else 0)
    return entries


def mutate(base, kind, home, rng):
    """Replace some of the program's files and folders, and add some, which are links most of the time."""
    own = base / OWN_FOLDERS[kind]
    there, names = [".", *(str(path.relative_to(own)) for path in own.rglob("*"))], OWN_NAMES[kind].split()
    targets = [path.relative_to(home).as_posix() for path in home.rglob("*")] + [".", "nothing", "nothing/below"]
    for _ in range(rng.randint(1, 3)):
        path = Path(os.path.normpath(own / rng.choice(rng.choice([there, names]))))
        is_named = path in (own / "shards", own / "features.sqlite", own / "sorted", own / "exported.onnx") or (
            path == own and kind not in ("studio", "parts")
        )
        if is_named or any(one.is_symlink() or (one.exists() and not one.is_dir()) for one in path.parents):
            continue  # what a person names may be a link
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        what = rng.random()
        target = home / rng.choice(targets)
        if what < 0.75:
            path.symlink_to(target if rng.random() < 0.5 else os.path.relpath(target, path.parent))
        elif what < 0.82:
            path.symlink_to(rng.choice([path, own, path.parent, base]))
        elif what < 0.88:
            os.mkfifo(path)
        elif what < 0.94:
            path.mkdir()
        else:
            path.with_name(rng.choice(["a\nb", "\x1b[2J", "=1+1", os.fsdecode(b"\xff"), " ", "-rf", "%2e%2e"])).touch()
    journal = own / "journal.jsonl"
    if (
        kind == "studio"
        and rng.random() < 0.5
        and not own.is_symlink()
        and journal.is_file()
        and not journal.is_symlink()
    ):
        (base / "p" / "link").symlink_to(home)
        moves = [[rng.choice(MOVED), rng.choice(MOVED)] for _ in range(3)]
        line = {"step": 1, "what": "", "moves": moves, "folders": [rng.choice(MOVED)], "before": {}, "after": {}}
        with suppress(OSError):
            journal.write_text(json.dumps(line) + "\n")


def stop(*_):
    raise TimeoutError("a pipe was opened, or it takes too long")


def attack(line):
    """How often a command worked and refused, and an error that is not of the program."""
    counts, faults = Counter(openings=1), []
    signal.alarm(60)
    try:
        has_worked = run(line)
        counts["opened" if has_worked else "refused"] += 1
        counts[f"{line} {'worked' if has_worked else 'refused'}"] += 1
    except Exception as error:
        faults.append(f"{line}: {type(error).__name__}: {error}"[:300])
    signal.alarm(0)
    return counts, faults


def main(folder, count, seed):
    signal.signal(signal.SIGALRM, stop)
    prepare_commands(folder)
    make_templates(folder)
    rng, faults, counts, outside = random.Random(seed), [], Counter(trees=count), {}
    for number in range(count):
        kind = list(OWN_FOLDERS)[number % len(OWN_FOLDERS)]
        base, home, template = folder / f"tree-{kind}", folder / f"home-{kind}", folder / "templates" / kind
        if kind not in outside:
            shutil.rmtree(home, ignore_errors=True)
            make_home(home, template / OWN_FOLDERS[kind])
            outside[kind] = listing(home)
        tree, lines = rng.random(), [line.strip() for line in COMMANDS[kind].splitlines() if line]
        for line in rng.sample(lines, -(-len(lines) // 3)):
            shutil.rmtree(base, ignore_errors=True)
            enter(folder, kind)
            shutil.copytree(template, base, symlinks=True, dirs_exist_ok=True)
            mutate(base, kind, home, random.Random(tree))
            more, errors = attack(line)
            counts += more
            faults += [f"{kind} {number}: {error}" for error in errors]
        if kind == "store":
            with suppress(ClipAdapterError):
                open_shards(base)
        os.chdir(folder)
        now, before = listing(home), outside[kind]
        if now != before:
            paths = [path for path in now.keys() | before if now.get(path) != before.get(path)]
            faults += [f"{kind} {number}: {path} changed" for path in paths[:3]]
            del outside[kind]
    sys.stdout.write(json.dumps({"faults": faults, "counts": counts}, indent=1))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
