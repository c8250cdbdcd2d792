"""Seconds, processor seconds and peak memory of commands from the shell: a fit, changes of the model, predictions.

    python benchmarks/speed/command_times.py PICTURES                     # one folder per class; the first 101 are used
    python benchmarks/speed/command_times.py PICTURES --classes 4 --rounds 1

Every command is a process of its own. The rounds run all commands in turn; each ends with the model as it began. "From
pictures" begins with an empty feature store, the other commands find the features of all pictures there.
"""

import sys
import tempfile
from pathlib import Path

from _measure import find_pictures, print_table, run_command, script_parser, summarise, write_json


def link_pictures(source: Path, target: Path, classes: int, shots: int, extra: int) -> Path:
    """Folders `shots` and `more` of links to the pictures of the first classes, and the path of one more picture."""
    folders = sorted(path for path in source.iterdir() if path.is_dir())[:classes]
    for folder in folders:
        paths = find_pictures(folder)
        for part, some in (("shots", paths[:shots]), ("more", paths[shots : shots + extra])):
            (target / part / folder.name).mkdir(parents=True)
            for path in some:
                (target / part / folder.name / path.name).symlink_to(path.resolve())
    return paths[-1].resolve()


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("pictures", type=Path, help="a folder of class folders")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--classes", type=int, default=101)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--extra", type=int, default=1, help="pictures per class that are added and evaluated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-warm-up", action="store_true", help="count the first round too, which fills the store")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = link_pictures(args.pictures, folder, args.classes, args.shots, args.extra)
        model, shots, more = (str(folder / part) for part in ("model", "shots", "more"))
        label = sorted(path.name for path in (folder / "shots").iterdir())[0]
        fit = ["fit", shots, "--encoder", args.encoder, "--out", model]
        commands = {
            "--help": ["--help"],
            "a wrong command line": ["fit", shots, "--ouut", model],
            "fit, from pictures": [*fit, "--no-cache"],
            "fit, stored features": fit,
            "predict, one picture": ["predict", model, str(photo)],
            "predict, one picture, torch": ["predict", model, str(photo), "--backend", "torch"],
            f"predict, {args.classes * args.extra} pictures": ["predict", model, more],
            "eval, stored features": ["eval", model, more],
            "add-examples, stored features": ["add-examples", model, more],
            "undo": ["undo", model],
            "rename-class": ["rename-class", model, label, f"{label} 2"],
            "undo of it": ["undo", model],
        }
        runs: dict[str, list[dict[str, float]]] = {each: [] for each in commands}
        environment = {"XDG_CACHE_HOME": str(folder / "cache")}
        for number in range(args.no_warm_up, args.rounds + 1):
            for each, command in commands.items():
                status = 2 if each == "a wrong command line" else 0
                run = run_command([sys.executable, "-m", "clipadapter", *command], environment, status)
                if number:
                    runs[each].append(run)
    rows = [
        {"command": each, **{unit: summarise(run[unit] for run in some) for unit in ("seconds", "cpu", "mb")}}
        for each, some in runs.items()
    ]
    print_table(rows)
    write_json(args.json, classes=args.classes, shots=args.shots, rounds=args.rounds, encoder=args.encoder, rows=rows)


if __name__ == "__main__":
    main()
