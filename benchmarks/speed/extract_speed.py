"""Pictures a second from JPEG files, beside what a person would use instead, all in one run on the same pictures.

    pip install sentence-transformers        # who is missing is left out
    python -m venv VENV && VENV/bin/pip install autogluon.multimodal    # and adaptshot, in another environment
    python benchmarks/speed/extract_speed.py PICTURES --rivals-python VENV/bin/python    # one folder a class

All open the same ViT-B/32 with random weights, written to a folder at the first run: speed does not depend on the
weights. Contestants take turns, each beginning with the files and, for ours, with an empty store on disk; rates are
medians over the rounds, and ratios medians of the ratios within a round. What is measured against is open_clip in a
torch DataLoader, without workers or with two, whichever is faster.

Models are opened, towers converted and backends chosen before; "ready s" are the seconds that took for ours, with
nothing kept from before. fp32 and bf16 share one converted tower, which is counted for the first. AutoGluon MultiModal
reads the same weights and has its own settings. Cosines and "far", the largest distance of unit features, are to
open_clip's fp32. `auto` chooses for the pictures of one round, or for as many as `--choose-for` says: for fewer it
converts less.

Then the encoder `lite` in the same way, beside its network as timm makes it; "same" is the share of pictures with the
same zero-shot answer, over the names of the folders the pictures lie in. AdaptShot is the exception there: its network
is another and smaller one, MobileNetV3-small, so that its features are not compared.
"""

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import _rivals
import numpy as np
import torch
from _measure import find_pictures, print_table, ratios, script_parser, timed, write_json
from pipeline_speed import BATCH, prepare, spread

from clipadapter.encoders import Encoder, create_encoder
from clipadapter.errors import MissingExtraError
from clipadapter.features import FeatureStore, choose_backend, encode_classes, extract
from clipadapter.heads import TextFeatures
from clipadapter.runtime.engines.parity import measure_parity

WORKERS = (0, 2)
BAR = len(WORKERS)
"""The first contestants, the fastest of which is measured against."""
WEIGHTS = Path(tempfile.gettempdir()) / "clipadapter-vit-b-32"


@dataclass(frozen=True)
class Contestant:
    """A row of the table.

    Args:
        name: in the table.
        run: paths to features (n, d).
        ready: seconds it took to be made ready, for ours.
        is_same_network: whether its features can be compared with the others'.
    """

    name: str
    run: _rivals.Run
    ready: float | None = None
    is_same_network: bool = True


def rivals(weights: Path, pythons: list[str]) -> list[Contestant]:
    """The rivals that are installed, here or for one of these interpreters."""
    loops = _rivals.open_clip_loops(weights, WORKERS)
    contestants = [Contestant(f"open_clip, {n} workers", run) for n, run in zip(WORKERS, loops, strict=True)]
    try:
        contestants.append(Contestant("sentence-transformers", _rivals.sentence_transformers(weights)))
    except ImportError as error:
        print(f"left out: sentence-transformers ({error})")
    return [*contestants, *elsewhere("AutoGluon MultiModal", "autogluon", pythons, weights)]


def elsewhere(title: str, name: str, pythons: list[str], weights: Path) -> list[Contestant]:
    """A rival in one of these interpreters, or none."""
    try:
        python = _rivals.interpreter_of(name, pythons)
        if python is None:
            raise ImportError("no --rivals-python has it")
        return [Contestant(title, _rivals.Process(python, name, weights), is_same_network=name != "adaptshot")]
    except ImportError as error:
        print(f"left out: {title} ({error})")
        return []


def ours(
    encoder: Encoder, paths: list[Path], many: list[Path], scratch: Path, text: TextFeatures | None
) -> list[Contestant]:
    """Every backend, and the one that is chosen by default for `many` pictures."""
    contestants = []
    os.environ["XDG_CACHE_HOME"] = str(scratch / "each")
    for backend, precision in [("torch", "fp32"), *[("openvino", each) for each in ("fp32", "bf16", "int8")]]:
        try:
            fast, ready = timed(lambda: prepare(encoder, backend, precision, paths))  # noqa: B023
        except MissingExtraError as error:
            print(f"left out: {backend} {precision} ({error})")
            continue
        contestants.append(Contestant(f"ours, {backend} {precision}", extraction(fast), ready["seconds"]))
    os.environ["XDG_CACHE_HOME"] = str(scratch / "auto")  # nothing is there yet
    chosen, ready = timed(lambda: choose_backend(encoder, many, text=None if text is None else lambda: text))
    name = f"ours, auto: {chosen.info.backend} {chosen.info.precision}"
    return [*contestants, Contestant(name, extraction(chosen), ready["seconds"])]


def extraction(encoder: Encoder) -> _rivals.Run:
    def run(paths: list[Path]) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder, FeatureStore(Path(folder) / "features.sqlite") as store:
            return extract(encoder, paths, store=store, batch_size=BATCH, strict=True).features[:, 0]

    return run


def race(contestants: list[Contestant], paths: list[Path], rounds: int, text: TextFeatures | None) -> list[dict]:
    """Let them take turns, print a table, and give a row a contestant."""
    for each in contestants:
        each.run(paths[:BATCH])
    seconds: dict[str, list[float]] = {each.name: [] for each in contestants}
    features = {}
    for i in range(rounds):
        for each in contestants:
            found, cost = timed(lambda: unit(each.run(paths)))  # noqa: B023
            features[each.name] = found
            seconds[each.name].append(cost["seconds"])
        print(f"round {i + 1}:", *(f"{len(paths) / all_of[-1]:.1f}" for all_of in seconds.values()), flush=True)
    bar = min((each.name for each in contestants[:BAR]), key=lambda name: statistics.median(seconds[name]))
    rows = []
    for each in contestants:
        row = {
            "name": each.name,
            "rate": len(paths) / statistics.median(seconds[each.name]),
            "ratio": ratios(seconds[bar], seconds[each.name]),
            "ready": each.ready,
            "seconds": seconds[each.name],
        }
        if each.is_same_network:
            near = measure_parity(features[bar], features[each.name], None if text is None else text.embeddings)
            row |= {"mean": near.mean_cosine, "least": near.min_cosine, "same": near.agreement}
            row["far"] = float(np.linalg.norm(features[each.name] - features[bar], axis=1).max())
        rows.append(row)
        if isinstance(each.run, _rivals.Process):
            each.run.close()
    print_table(rows)
    return rows


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def class_text(encoder: Encoder, paths: list[Path]) -> TextFeatures:
    """Of the folders' names."""
    names = sorted({path.parent.name.replace("_", " ") for path in paths})
    return encode_classes(encoder, {name: [f"a photo of a {name}."] for name in names})


def vit(args: argparse.Namespace, paths: list[Path], many: list[Path], scratch: Path) -> list[dict]:
    encoder = create_encoder(f"open_clip:local-dir:{args.weights}")
    contestants = [*rivals(args.weights, args.rivals_python), *ours(encoder, paths, many, scratch, None)]
    return race(contestants, paths, args.rounds, None)


def lite(args: argparse.Namespace, paths: list[Path], many: list[Path], scratch: Path) -> list[dict]:
    encoder = create_encoder("lite")
    text = class_text(encoder, paths)
    loops = zip(WORKERS, _rivals.lite_loops(WORKERS), strict=True)
    eager = [Contestant(f"lite in timm, {n} workers", run) for n, run in loops]
    other = elsewhere("AdaptShot, a smaller network", "adaptshot", args.rivals_python, args.weights)
    return race([*eager, *other, *ours(encoder, paths, many, scratch, text)], paths, args.rounds, text)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("pictures", type=Path, help="a folder")
    parser.add_argument("--count", type=int, default=1000, help="pictures a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("ViT-B/32", "lite"), help="one of the two tables")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the ViT-B/32 is, or will be written")
    parser.add_argument("--rivals-python", action="append", default=[], help="an interpreter; may be given again")
    parser.add_argument("--choose-for", type=int, help="pictures that auto chooses a backend for; default: --count")
    args = parser.parse_args()
    if not args.weights.exists():
        _rivals.write_open_clip(args.weights)
    paths = find_pictures(args.pictures)
    some = spread(paths, args.count)
    many = spread(paths, args.choose_for or args.count)
    print(f"{len(some)} pictures, {args.rounds} rounds, {torch.get_num_threads()} threads of torch")
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, table in (("ViT-B/32", vit), ("lite", lite)):
            if args.only in (None, name):
                tables[name] = table(args, some, many, Path(folder) / name.replace("/", "-"))
    write_json(args.json, pictures=len(some), rounds=args.rounds, chosen_for=len(many), tables=tables)


if __name__ == "__main__":
    main()
