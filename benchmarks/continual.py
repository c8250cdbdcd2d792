"""Models that keep learning: five tasks of Caltech-101, then fabric, and what each head knows of every task in the end.

FOLDER has the pictures as train/CLASS and test/CLASS; the fabric is the package's own (extra `demo`). Classes come in
another order with each seed, and nobody says which task a test picture is of (X-TAIL):

    python benchmarks/continual.py FOLDER --out results/continual
    python benchmarks/continual.py FOLDER --out results/continual --heads rail,afa --shots 16 --seeds 1

Every stream is a record of its own; a call that was stopped goes on. Tables, heat maps and plots are written to
OUT/reports/continual.html (and .md, .csv, .tex), the short table is printed.
"""

import argparse
from pathlib import Path

from clipadapter import FewShotClassifier
from clipadapter.bench import load_study, open_source, run_suite, stream_table, write_report
from clipadapter.bench.launcher import Launcher
from clipadapter.bench.suite import parse_suite

SUITE = """
title = "Five tasks of Caltech-101, then fabric"
question = "Which head forgets least, and which ends nearest to one that had all shots at once?"
source = "X-TAIL of RAIL (https://arxiv.org/abs/2406.18868), on other pictures"
protocol = "stream"
heads = [
  "zero-shot", "clip-adapter-replay", "rail", "afa", "nearest-mean",
  { head = "clip-adapter-replay", label = "clip-adapter (sequential)", params = { replay = 0 } },
  { head = "gda", label = "gda", params = { stream = true } },
  { head = "clip-adapter", mode = "joint" },
  { head = "auto", mode = "joint" },
]
prompts = [{ label = "", templates = ["a photo of a {}."] }]
shots = [4, 16]
seeds = [1, 2, 3]

[stream]
classes_per_task = 20
orders = [{ name = "classes by seed, fabric last", shuffle = "classes" }]
"""


def suite_of(args):
    """The suite, with the selected heads only."""
    suite = parse_suite("continual", SUITE)
    changes = {"shots": args.shots, "seeds": list(range(1, args.seeds + 1))}
    if args.heads:
        selected = args.heads.split(",")
        changes["heads"] = [one for one in suite.heads if {one.head, one.title} & set(selected)]
    return suite.model_copy(update=changes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--out", type=Path, default=Path("results/continual"))
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--heads", help="names of some heads, with commas between them")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    suite = suite_of(args)
    model = FewShotClassifier(args.encoder, precision="fp32", progress=True)
    sources = [open_source(args.folder), open_source("textiles")]
    launcher = Launcher(workers=args.workers)
    run_suite(suite, sources, {args.encoder: model}, args.out, launcher, progress=True)
    study = load_study(args.out, suite.name)
    for shots in suite.shots:
        runs = [
            run.model_copy(update={"head": place.label})
            for place, own in study.runs_by_setting.items()
            for run in own
            if place.shots == shots
        ]
        print(f"\n{shots} shots a class\n\n{stream_table(runs, notes=shots == suite.shots[-1])}")
    print("\n" + "\n".join(f"wrote {path}" for path in write_report(study, args.out)))


if __name__ == "__main__":
    main()
