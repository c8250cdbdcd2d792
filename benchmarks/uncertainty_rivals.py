"""Beside AdaptShot and conformal-clip on the same shots: accuracy, calibration, sets, "none of these", time, memory.

TRAIN and TEST are folders of pictures, BACKGROUND a folder of pictures of none of the classes. On each draw --known
classes are learned, the test pictures of --new others must be told from theirs, and the background too.

    python benchmarks/uncertainty_rivals.py TRAIN TEST [BACKGROUND] --out results/x
    python benchmarks/uncertainty_rivals.py TRAIN TEST --known 2 --features --out results/y

Every fit is a process of its own, on one core. `--python adaptshot=PATH` names the interpreter that a rival is
installed in, if it is not this one; a rival that can't be imported is left out. AdaptShot (0.3) has weights of its own,
and runs once more on features of --encoder, by replacing what makes its embeddings. It refuses grey pictures: it gets
copies in colour. conformal-clip (0.2) knows two classes, so it runs with --known 2, and on features of --encoder; half
of the shots are its exemplars, half calibrate it. With --features clipadapter too begins at features.

Results are lines of runs.jsonl as soon as they are there; a run that was stopped goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

WORKER = Path(__file__).with_name("_uncertainty_rival.py")
TOOLS = {
    "clipadapter": ("clipadapter", {}),
    "clipadapter, by class": ("clipadapter", {"by_class": True}),
    "AdaptShot": ("adaptshot", {}),
    "AdaptShot on our features": ("adaptshot", {"features": True}),
    "conformal-clip": ("conformal_clip", {}),
    "conformal-clip, isotonic": ("conformal_clip", {"prob_calibration": "isotonic"}),
    "conformal-clip, sigmoid": ("conformal_clip", {"prob_calibration": "sigmoid"}),
    "conformal-clip, isotonic, global": ("conformal_clip", {"prob_calibration": "isotonic", "mondrian": False}),
}
COLUMNS = (
    ("accuracy", 1, "accuracy"),
    ("ECE", 1, "ECE"),
    ("coverage", 1, "coverage"),
    ("size", 2, "size"),
    ("false none", 1, "known flagged"),
    ("new flagged", 1, "new flagged"),
    ("new AUROC / FPR95", 1, "new auroc", "new fpr"),
    ("far flagged", 1, "far flagged"),
    ("far AUROC / FPR95", 1, "far auroc", "far fpr"),
    ("asks: known / new / far", 1, "known asks", "new asks", "far asks"),
)
COSTS = (
    ("start, s", 2, "start"),
    ("fit, s", 2, "fit"),
    ("fit, CPU s", 2, "fit cpu"),
    ("picture, ms", 1, "picture"),
    ("picture, CPU ms", 1, "picture cpu"),
    ("peak, MB", 0, "peak"),
)


def measure(output, truth, group):
    """Figures of one fit: its answers, positions of the true classes, and which group each picture is of."""
    from clipadapter.metrics.calibration import reliability
    from clipadapter.metrics.detection import auroc, fpr_at

    known = group == "known"
    is_correct = output["best"][known] == truth[known]
    sets = output["sets"][known]
    figures = {
        "accuracy": 100 * is_correct.mean(),
        "ECE": 100 * reliability(output["confidence"][known], is_correct, 15, "equal-mass").error,
        "coverage": 100 * sets[np.arange(len(is_correct)), truth[known]].mean(),
        "size": sets.sum(axis=1).mean(),
    }
    for name in np.unique(group):
        for kind, label in (("flag", "flagged"), ("asks", "asks")):
            if kind in output:
                figures[f"{name} {label}"] = 100 * output[kind][group == name].mean()
        if name != "known" and "score" in output:
            pair = output["score"][known], output["score"][group == name]
            figures |= {f"{name} auroc": 100 * auroc(*pair), f"{name} fpr": 100 * fpr_at(*pair)}
    return {name: float(value) for name, value in figures.items()} | json.loads(str(output["costs"]))


class Draws:
    """Features of all pictures, and the tasks that are drawn from them."""

    def __init__(self, args):
        from clipadapter import FewShotClassifier, load_dataset
        from clipadapter.data.folders import list_images

        self.args, self.train, self.test = args, load_dataset(args.train), load_dataset(args.test)
        self.names = self.train.class_names
        self.far = list_images(args.background) if args.background else []
        self.paths = [str(path) for path in (*self.train.paths, *self.test.paths, *self.far)]
        self.model = FewShotClassifier(args.encoder, precision="fp32", backend="torch", progress=True)
        self.features = self.model.extract_features(self.paths, [self.names[0]] * len(self.paths), self.names).plain
        self.row = {path: i for i, path in enumerate(self.paths)}
        self.colour = dict(self._copies(args.out / "colour"))
        print(f"{len(self.colour)} of {len(self.paths)} pictures are not RGB")

    def _copies(self, folder):
        from PIL import Image

        folder.mkdir(exist_ok=True)
        for i, path in enumerate(self.paths):
            with Image.open(path) as picture:
                if picture.mode != "RGB":
                    picture.convert("RGB").save(folder / f"{i}.png")
                    yield path, str(folder / f"{i}.png")

    def task(self, shots, seed):
        from clipadapter.data import draw_shots

        rng, args = np.random.default_rng(seed), self.args
        order = rng.permutation(len(self.names)) if len(self.names) > args.known else np.arange(args.known)
        parts = np.split(order[: args.known + args.new], [args.known])
        known, new = (sorted(self.names[i] for i in part) for part in parts)
        rows = [i for i in draw_shots(self.train.labels, shots, seed) if self.train.labels[i] in known]
        tests = zip(map(str, self.test.paths), self.test.labels, strict=True)
        queries_with_labels = [
            (path, y, "known" if y in known else "new") for path, y in tests if y in known or y in new
        ]
        queries_with_labels += [(str(path), "", "far") for path in self.far]
        queries_with_labels = [
            queries_with_labels[i] for i in rng.permutation(len(queries_with_labels))
        ]  # AdaptShot's flag hangs on what came before
        queries, labels, group = (list(part) for part in zip(*queries_with_labels, strict=True))
        paths, text = [str(self.train.paths[i]) for i in rows], self.model.encode_classes(known)
        arrays = {"text": text.embeddings, "scale": text.logit_scale}
        for name, chosen_paths in (("shots", paths), ("queries", queries)):
            arrays[name] = self.features[[self.row[path] for path in chosen_paths]]
        np.savez(args.out / "arrays.npz", **arrays)
        task = {"names": known, "shots": paths, "labels": [self.train.labels[i] for i in rows], "queries": queries}
        task |= {"colour": self.colour, "encoder": args.encoder, "features": args.features}
        (args.out / "task.json").write_text(json.dumps(task | {"arrays": str(args.out / "arrays.npz")}))
        truth = np.array([known.index(y) if y in known else -1 for y in labels])
        return truth, np.array(group)


def importable(module, python):
    return not subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode


def run(args):
    records, draws = args.out / "runs.jsonl", Draws(args)
    rows = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    python = dict(pair.split("=", 1) for pair in args.python)
    installed_tools = {tool for tool, _ in TOOLS.values() if importable(tool, python.get(tool, sys.executable))}
    for seed in range(1, args.seeds + 1):
        for shots in args.shots:
            truth, group = draws.task(shots, seed)
            for name, (tool, options) in TOOLS.items():
                needs_two_classes = tool == "conformal_clip" or "by_class" in options
                finished = {(r["tool"], r["shots"], r["seed"]) for r in rows}
                if (
                    tool not in installed_tools
                    or (needs_two_classes and args.known != 2)
                    or (name, shots, seed) in finished
                ):
                    continue
                command = [python.get(tool, sys.executable), str(WORKER), tool, json.dumps(options)]
                subprocess.run([*command, str(args.out / "task.json"), str(args.out / "said.npz")], check=True)
                figures = measure(dict(np.load(args.out / "said.npz")), truth, group)
                rows.append({"tool": name, "shots": shots, "seed": seed, **figures})
                with records.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    return rows


def table(rows, columns):
    """Means over the draws."""
    columns = [c for c in columns if any(c[2] in r for r in rows)]
    lines = ["| shots | tool | " + " | ".join(c[0] for c in columns) + " |", "|---:|---|" + "---:|" * len(columns)]
    for shots in sorted({r["shots"] for r in rows}):
        for tool in (name for name in TOOLS if any(r["tool"] == name for r in rows)):
            tool_rows, cells = [r for r in rows if (r["tool"], r["shots"]) == (tool, shots)], []
            for _, digits, *keys in columns:
                values = [[r[key] for r in tool_rows if key in r] for key in keys]
                cells.append(" / ".join(f"{np.mean(v):.{digits}f}" for v in values if v) or "-")
            lines.append(f"| {shots} | {tool} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("background", type=Path, nargs="?")
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--known", type=int, default=20)
    parser.add_argument("--new", type=int, default=20)
    parser.add_argument("--shots", default="2,4,8,16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--features", action="store_true")
    parser.add_argument("--python", action="append", default=[], metavar="MODULE=PATH")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.shots, args.out = [int(n) for n in args.shots.split(",")], args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # processes that are started take it over
    done = run(args)
    text = table(done, COLUMNS) + "\n" + table(done, COSTS)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
