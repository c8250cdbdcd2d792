"""Work is counted, not timed: it must not rise by a third unnoticed, on a machine of any speed.

The figures of before are in counted_work.json. ``python tests/test_counted_work.py`` writes them again, after a change
that was meant to change the work.
"""

import builtins
import io
import json
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import open_clip
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from clipadapter.cli.app import app
from clipadapter.encoders import toy
from clipadapter.encoders.open_clip_text import wrap_text_tower
from clipadapter.features import FeatureStore
from clipadapter.heads import TextFeatures, create_head
from clipadapter.testing import toy_features

RECORD = Path(__file__).with_name("counted_work.json")
RENEW = f"python tests/{Path(__file__).name}"
MAX_CHANGE = 4 / 3
SHOTS, QUERIES, CLASSES, WIDTH = 16, 8, 3, 64
COLOURS, PER_CLASS = ("blue", "green", "red"), 4


# ---- Floating-point operations of fits and predictions ----


def flops_of_product(target, a, b, **unused):
    return 2 * math.prod(a) * b[-1]


IN_PLACE = {torch.ops.aten.addmm_: flops_of_product, torch.ops.aten.baddbmm_: flops_of_product}
"""Products that torch's counter leaves out."""


def count_flops(work):
    """Those of matrix products, convolutions and attention in torch."""
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        work()
    return counter.get_total_flops()


def features(seed=0, shots=SHOTS):
    return toy_features(counts=(shots,) * CLASSES, d=WIDTH, seed=seed)


def flops_of(name, **parameters):
    """Those of a fit, and of a prediction by the fitted head."""
    X, y, text = features()
    head = create_head(name, **parameters)
    queries = features(seed=3, shots=QUERIES)[0]
    return count_flops(lambda: head.fit(X, y, text=text)), count_flops(lambda: head.predict(queries))


def flops_of_coop():
    """Four epochs of prompt learning through a narrow text tower of CLIP."""
    vision = {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16, "head_width": 16}
    words = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(WIDTH, vision, words).eval().requires_grad_(False)
    tower = wrap_text_tower(model, open_clip.SimpleTokenizer(), "counted", "cpu")
    X, y, text = features()
    text = TextFeatures(text.labels, text.embeddings, text.logit_scale, tower=lambda: tower)
    head = create_head("coop", n_ctx=4, epochs=4)
    return count_flops(lambda: head.fit(X, y, text=text))


HEADS = {
    "zero-shot": {},
    "clip-adapter": {"steps": 20},
    "taskres": {"steps": 20},
    "auto": {},
    "linear-probe": {},
    "tip-adapter": {},
    "gda": {},
}


def work_of_heads(folder):
    work = {"flops, fit coop": flops_of_coop()}
    for name, parameters in HEADS.items():
        work[f"flops, fit {name}"], work[f"flops, predict {name}"] = flops_of(name, **parameters)
    return work


# ---- What commands ask of the encoder, the files and the store ----


@contextmanager
def counted(folder):
    """Count calls of the encoder, files opened in a folder, statements and keys of the store, within the block.

    The squares of colour that the toy encoder encodes when it is opened are not counted.
    """
    counts, is_opening = Counter(), []
    initialise = toy.ToyEncoder.__init__
    encode, forward, get_many = toy.ToyEncoder.encode_pixels, toy._ToyNetwork.forward, FeatureStore.get_many
    connect, open_file, open_descriptor = sqlite3.connect, io.open, os.open

    def encoded(plain):
        def run(self, pixels, *args):
            if not is_opening:
                counts["encoder calls"] += 1
                counts["pictures encoded"] += len(pixels)
            return plain(self, pixels, *args)

        return run

    def open_encoder(self, *args):
        is_opening.append(True)
        initialise(self, *args)
        is_opening.clear()

    def look_up(self, keys, *args, **options):
        keys = list(keys)
        counts["rows asked of the store"] += len(keys)
        return get_many(self, keys, *args, **options)

    def connected(*args, **options):
        connection = connect(*args, **options)
        connection.set_trace_callback(lambda statement: counts.update(["SQL statements"]))
        return connection

    def opened(plain):
        def run(path, *args, **options):
            if isinstance(path, (str, Path)) and Path(path).is_relative_to(folder):
                counts["pictures opened" if str(path).endswith(".png") else "other files opened"] += 1
            return plain(path, *args, **options)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy.ToyEncoder, "__init__", open_encoder)
        patch.setattr(toy.ToyEncoder, "encode_pixels", encoded(encode))
        patch.setattr(toy._ToyNetwork, "forward", encoded(forward))
        patch.setattr(FeatureStore, "get_many", look_up)
        patch.setattr(sqlite3, "connect", connected)
        patch.setattr(io, "open", opened(open_file))
        patch.setattr(builtins, "open", opened(open_file))
        patch.setattr(os, "open", opened(open_descriptor))
        yield counts


def write_squares(folder, count, first=0):
    for name in COLOURS:
        (folder / name).mkdir(parents=True)
        for i in range(first, first + count):
            Image.new("RGB", (40 + i, 50), name).save(folder / name / f"{i}.png")
    return folder


def work_of_commands(folder):
    """Counts of each command, in the order of a session: pictures are encoded once, then read from the store."""
    shots, more = write_squares(folder / "shots", PER_CLASS), write_squares(folder / "more", 2, PER_CLASS)
    store = ["--cache", str(folder / "features.sqlite")]
    model = folder / "model"
    session = {
        "embed": ["embed", shots, "--encoder", "toy", *store],
        "fit": ["fit", shots, "--encoder", "toy", "--out", model, *store],
        "add-examples": ["add-examples", model, more, *store],
        "eval": ["eval", model, more, *store],
        "predict": ["predict", model, more / "red", "--backend", "torch", *store],
    }
    work = {}
    for name, command in session.items():
        with counted(folder) as counts:
            result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, (name, result.output)
        work |= {f"{name}, {unit}": counts[unit] for unit in UNITS}
    files = [path for path in model.rglob("*") if path.is_file()]
    work |= {"saved model, files": len(files), "saved model, bytes": sum(path.stat().st_size for path in files)}
    return work


UNITS = (
    *("encoder calls", "pictures encoded", "pictures opened", "other files opened"),
    *("rows asked of the store", "SQL statements"),
)


# ---- Modules that are imported before a command answers ----

COUNT_MODULES = """
import atexit, sys
before = set(sys.modules)
atexit.register(lambda: print(len(set(sys.modules) - before), file=sys.stderr))
from clipadapter.cli.app import main
sys.argv = ["clipadapter", *sys.argv[1:]]
main()
"""


def count_modules(*command):
    done = subprocess.run([sys.executable, "-c", COUNT_MODULES, *command], capture_output=True, text=True, check=True)
    return int(done.stderr.splitlines()[-1])


def work_of_imports(folder):
    """Of a help page, and of a prediction with an exported file."""
    model = folder / "model"
    shots = write_squares(folder / "shots", 2)
    for command in (
        ["fit", shots, "--encoder", "toy", "--head", "gda", "--out", model, "--no-cache"],
        ["export", model, "--out", folder / "model.onnx"],
    ):
        result = CliRunner().invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, result.output
    photo = str(shots / "red" / "0.png")
    return {
        "modules, --help": count_modules("--help"),
        "modules, predict with an exported file": count_modules("predict", str(folder / "model.onnx"), photo),
        "exported file, bytes": (folder / "model.onnx").stat().st_size,
    }


# ---- The rules ----


def count_all(folder):
    work = {}
    for count in (work_of_heads, work_of_commands, work_of_imports):
        work |= count(folder / count.__name__)
    return work


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return count_all(tmp_path_factory.mktemp("counted"))


def test_work_is_within_a_third_of_what_is_recorded(work):
    recorded = json.loads(RECORD.read_text())
    changed = work.keys() ^ recorded.keys()
    assert not changed, f"{changed} are counted or recorded, but not both: run {RENEW}"
    risen = {name: (recorded[name], n) for name, n in work.items() if n > MAX_CHANGE * recorded[name]}
    fallen = {name: (recorded[name], n) for name, n in work.items() if MAX_CHANGE * n < recorded[name]}
    assert not risen, f"this takes more work than before (recorded, counted): {risen}. If that is meant: {RENEW}"
    assert not fallen, f"this takes less work than recorded (recorded, counted): {fallen}. Record it: {RENEW}"


N, M, H = CLASSES * SHOTS, CLASSES * QUERIES, WIDTH // 4
"""Shots, queries, and the width of the adapter's hidden layer."""
EXPECTED_OF_PREDICT = {
    "zero-shot": 2 * M * WIDTH * CLASSES,
    "taskres": 2 * M * WIDTH * CLASSES,
    "linear-probe": 2 * M * WIDTH * CLASSES,
    "clip-adapter": 2 * M * (WIDTH * H + H * WIDTH + WIDTH * CLASSES),
    "tip-adapter": 2 * M * (WIDTH * N + WIDTH * CLASSES),  # the cache's one-hot values are sums, not a product
}


@pytest.mark.parametrize("name", EXPECTED_OF_PREDICT)
def test_a_prediction_takes_the_products_of_its_formula(name, work):
    assert work[f"flops, predict {name}"] == EXPECTED_OF_PREDICT[name]


def test_a_step_of_clip_adapter_takes_the_products_of_its_formula_and_their_gradients():
    # Three products, and the gradients of their factors, except those of features and class text, which are fixed.
    step = 2 * N * (2 * WIDTH * H + 3 * H * WIDTH + 2 * WIDTH * CLASSES)
    fits = [flops_of("clip-adapter", alpha=0.2, steps=steps)[0] for steps in (20, 40)]
    assert fits[1] - fits[0] == 20 * step


def test_a_step_of_taskres_takes_the_product_with_the_class_text_and_its_gradient():
    fits = [flops_of("taskres", steps=steps)[0] for steps in (20, 40)]
    assert fits[1] - fits[0] == 20 * 2 * (2 * N * WIDTH * CLASSES)


def test_each_command_opens_a_picture_once_and_encodes_what_no_command_encoded_before(work):
    shots, more = len(COLOURS) * PER_CLASS, len(COLOURS) * 2
    new = {"embed": shots, "fit": 0, "add-examples": more, "eval": 0, "predict": 0}
    opened = {"embed": shots, "fit": shots, "add-examples": more, "eval": more, "predict": 2}
    assert {name: work[f"{name}, pictures encoded"] for name in new} == new
    assert {name: work[f"{name}, pictures opened"] for name in opened} == opened


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        RECORD.write_text(json.dumps(count_all(Path(scratch)), indent=1) + "\n", encoding="utf-8")
