"""Few-shot table on folders of pictures: the baselines, CLIP-Adapter's default, and the authors' released recipe.

`clipadapter compare` does the same for every registered head; here two settings of one head stand side by side.
"released, Adam" is the released architecture and ratio with a step size that moves it: SGD at CoOp's 2e-3 hardly does
where the logit scale is far below CLIP's 100.

    python benchmarks/few_shot_folder.py TRAIN TEST --encoder lite --seeds 3 --out results/caltech
"""

import argparse
from pathlib import Path

from clipadapter import FewShotClassifier, load_dataset
from clipadapter.bench import compare, table
from clipadapter.heads import create_head
from clipadapter.heads.clip_adapter import ClipAdapter

ADAM = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0, "schedule": "cosine", "warmup_epochs": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--encoder", default="lite")
    parser.add_argument("--shots", default="1,2,4,8,16")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="folder for runs.jsonl and table.md")
    args = parser.parse_args()
    heads = {
        "zero-shot": create_head("zero-shot"),
        "linear-probe": create_head("linear-probe"),
        "clip-adapter": ClipAdapter(),
        "released recipe": ClipAdapter.official(),
        "released, Adam": ClipAdapter.official(epochs=None, batch_size=256, **ADAM),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    model = FewShotClassifier(encoder=args.encoder, precision="fp32", progress=True)
    shots = [int(n) for n in args.shots.split(",")]
    train, test = load_dataset(args.train), load_dataset(args.test)
    comparison = compare(
        model, train, test, heads, shots, range(args.seeds), records=args.out / "runs.jsonl", progress=True
    )
    (args.out / "table.md").write_text(table(comparison.runs, markdown=True), encoding="utf-8")
    print(table(comparison.runs))


if __name__ == "__main__":
    main()
