"""How near exported files are to their models, how large they are, and how fast: the table of docs/export.md.

Models of some classes are fitted to a few shots each and exported in every format and precision; the gate compares on
test pictures. `ViT-B-32` and `RN50` stand for models of open_clip with random weights, written to a folder at the first
run: nearness in fp32 and speed don't depend on what they have learned, answers in int8 do. Their features all look
alike, so that the slightest change turns answers. Say open_clip:... for real ones.

    python benchmarks/export_parity.py caltech101-mini --encoders lite ViT-B-32 RN50 --weights weights/
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from clipadapter import FewShotClassifier
from clipadapter.data import draw_shots, load_dataset
from clipadapter.encoders import create_encoder
from clipadapter.errors import ArtifactError, InputError
from clipadapter.export import export_model
from clipadapter.runtime import Predictor
from clipadapter.uncertainty import UncertaintyOptions

RANDOM = ("ViT-B-32", "RN50")
HEADS = ("auto", "zero-shot", "tip-adapter", "clip-adapter", "linear-probe", "gda", "knn")
KINDS = (("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32"), ("openvino", "int8"))
SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
BATCH, REPEATS, COMPARED = 32, 5, 64
COLUMNS = "| encoder | head | file | logits | smallest cosine | same answers | same rejections | MB | rate |"
RULE = "|---|---|---|---:|---:|---:|---:|---:|---:|"


def open_encoder(name: str, weights: Path) -> Any:
    if name not in RANDOM:
        return create_encoder(name)
    folder = weights / name
    if not (folder / "open_clip_config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        config = open_clip.get_model_config(name)
        pixels = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
        torch.manual_seed(0)
        save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
        facts = {"model_cfg": config, "preprocess_cfg": pixels}
        (folder / "open_clip_config.json").write_text(json.dumps(facts))
    return create_encoder(f"open_clip:local-dir:{folder}")


def rate(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return BATCH / (time.perf_counter() - start)


def speed_up(model: FewShotClassifier, predictor: Predictor, squares: np.ndarray) -> float:
    """Pictures a second of the file by those of the model, in turns."""
    pixels = torch.from_numpy(squares)

    def plain() -> None:
        model.head_.logits(model.encoder_.encode_pixels(pixels).numpy())

    plain(), predictor.run(squares)
    return statistics.median(rate(lambda: predictor.run(squares)) / rate(plain) for _ in range(REPEATS))


def one(model: FewShotClassifier, kind: tuple[str, str], pictures: list[Path]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{SUFFIX[kind[0]]}"
        try:
            export = export_model(model, path, format=kind[0], precision=kind[1], pictures=pictures)
        except (ArtifactError, InputError) as error:
            return {"refused": str(error)}
        predictor = Predictor(path)
        squares = np.stack([predictor.preprocess(picture) for picture in pictures[:BATCH]])
        return {**export.parity, "size": export.size_bytes, "rate": speed_up(model, predictor, squares)}


def row(encoder: str, head: str, kind: tuple[str, str], result: dict[str, Any]) -> str:
    start = f"| `{encoder}` | `{head}` | {' '.join(kind)} "
    if "refused" in result:
        reason = result["refused"].partition("was not written: ")[2].partition(" (on ")[0] or result["refused"]
        return f"{start}| refused: {reason} | | | | | |"
    rejected = f"{result['rejected']:.1%}" if "rejected" in result else "–"
    figures = (
        f"{result['logits']:.1e}",
        f"{result['cosine_least']:.5f}",
        f"{result['agreement']:.1%}",
        rejected,
        f"{result['size'] / 1e6:.1f}",
        f"{result['rate']:.2f}",
    )
    return f"{start}| {' | '.join(figures)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder with train/ and test/")
    parser.add_argument("--encoders", nargs="+", default=["lite"])
    parser.add_argument("--heads", nargs="+", default=list(HEADS))
    parser.add_argument("--weights", type=Path, default=Path("weights"), help="folder for random weights")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--out", type=Path, help="file for all figures as JSON lines")
    args = parser.parse_args()
    data = load_dataset(args.data)
    train, test = data.split("train"), data.split("test")
    rng = np.random.default_rng(0)
    names = sorted(rng.permutation(sorted(set(train.labels)))[: args.classes].tolist())
    class_rows = [i for i, label in enumerate(train.labels) if label in names]
    draws = draw_shots([train.labels[i] for i in class_rows], args.shots, 0)
    shots = [class_rows[i] for i in draws]
    queries = [path for path, label in zip(test.paths, test.labels, strict=True) if label in names]
    # As many for the comparison, and as many to calibrate int8 with.
    queries = [queries[i] for i in rng.permutation(len(queries))[: 2 * COMPARED]]
    print(COLUMNS, RULE, sep="\n", flush=True)
    for encoder in args.encoders:
        opened = open_encoder(encoder, args.weights)
        for head in args.heads:
            options = {"backend": "torch", "precision": "fp32", "uncertainty": UncertaintyOptions(reject=0.05)}
            model = FewShotClassifier(opened, head, **options)
            model.fit([train.paths[i] for i in shots], [train.labels[i] for i in shots])
            for kind in KINDS:
                result = one(model, kind, queries)
                print(row(encoder, head, kind, result), flush=True)
                if args.out:
                    with args.out.open("a") as file:
                        file.write(json.dumps({"encoder": encoder, "head": head, "file": kind, **result}) + "\n")


if __name__ == "__main__":
    main()
