"""One folder of each kind that belongs to the program, and what opens it, for `link_trees.py`."""

import random

import numpy as np
import pyarrow.fs
from bench_faults import pictures, run
from studio_faults import act

from clipadapter.bench import load_study
from clipadapter.bench.bundle_files import load_bundle, save_bundle
from clipadapter.bench.plan import load_plan
from clipadapter.bench.records import append_runs, read_runs, records_file
from clipadapter.encoders import create_encoder
from clipadapter.features import FeatureSet, FeatureStore, shards
from clipadapter.files import folder_without_links
from clipadapter.heads import create_head
from clipadapter.persistence import History, Model, load_model, restore_version, save_model
from clipadapter.prediction import Prediction
from clipadapter.prediction_files import PredictionFile, stamp_files
from clipadapter.studio.project import STUDIO_FOLDER, Project, prepare_uploads
from clipadapter.testing import toy_features

HEX = "0a" * 16
ENCODER = create_encoder("toy")
OWN_FOLDERS = {"studio": "p/.studio", "model": "m", "parts": "a.csv.parts", "bench": "out", "store": "s"}


def open_parts(base, finish):
    with PredictionFile(base / "a.csv", {"model": "m"}) as file:
        while file.next_length() is not None and file.keep_next(stamp_files([])):
            pass
        file.write([[Prediction("x", "a", 0.5, (("a", 0.5),))]], stamp_files([]))
        if finish:
            file.finish()


def open_studio(base, rng):
    with Project(base / "p") as project:
        project.save_setting("quality", "best")
        for _ in range(3):
            act(project, rng)
    folder_without_links(base / "p", STUDIO_FOLDER, "export")  # as the page does before it serves the folder


def open_bench(base, rng):
    append_runs(records_file(base / "out"), read_runs(base / "out" / "runs.jsonl")[:1])
    load_plan(base / "out", "own").save(base / "out")
    load_study(base / "out", "own")
    for folder in (base / "out" / "features").glob("*"):
        save_bundle(load_bundle(folder), folder)


def open_store(base, rng):
    with FeatureStore(base / "s" / "features.sqlite") as store:
        store.put_many({rng.randbytes(8): np.ones(4, np.float32)})


def open_shards(base, rng):
    folder = base / "s" / "shards"
    local, feature = pyarrow.fs.LocalFileSystem(), np.ones(ENCODER.info.dim, np.float32)
    plan = shards.make_plan("toy", ENCODER, [f"{HEX}.parquet"])
    shards.write_plan(local, str(folder), plan)
    rows = [shards.ShardRow("x", "a", "all", b"d", feature)]
    shards.write_shard(local, f"{folder}/{HEX}.parquet", rows, plan)
    shards.remove_abandoned_parts(local, str(folder))
    shards.FeatureShards(folder)


def make_model(i):
    X, y, text = toy_features(d=32)
    X = (X + i).astype(np.float32)
    shots = FeatureSet(X, tuple(y), text.labels, {"sources": [str(k) for k in range(len(X))]})
    head = create_head("prototype").fit(X, y, text=text)
    return Model(head, text, shots, {name: [name] for name in text.labels}, ENCODER.info)


def save_next(base, rng):
    history, before, after = History.load(base / "m"), load_model(base / "m"), make_model(rng.randrange(100))
    save_model(base / "m", after, history=history.with_change(before, after, "correct", {}))


OPENERS = {
    "studio": [open_studio, lambda base, rng: prepare_uploads(base / "p")],
    "model": [lambda base, rng: load_model(base / "m"), save_next, lambda base, rng: restore_version(base / "m")],
    "parts": [lambda base, rng: open_parts(base, finish=False), lambda base, rng: open_parts(base, finish=True)],
    "bench": [open_bench],
    "store": [open_store, open_shards],
}


def make_templates(base):
    """One sound folder of each kind, as the program leaves it."""
    rng = random.Random(1)
    for kind in OWN_FOLDERS:
        (base / kind).mkdir(parents=True)
    pictures(base / "studio" / "p")
    with Project(base / "studio" / "p") as project:
        for _ in range(12):
            act(project, rng)
    for i in range(3):
        save_model(base / "model" / "m", make_model(i))
    open_parts(base / "parts", finish=False)
    pictures(base / "pictures")
    run(base / "pictures", base / "bench" / "out")
    (base / "store" / "s").mkdir()
    open_store(base / "store", rng)
    open_shards(base / "store", rng)
