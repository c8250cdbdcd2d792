"""Alters saved models, with hashes made anew, and loads them.

    python tests/robustness/mutate_models.py FOLDER SEED MODELS

It writes one JSON object: how many models were tried, how often each outcome came, and every rule that was broken. An
altered model loads, answers finite logits and can be changed and saved, or raises an error of the library; it takes
little memory and time.
"""

import collections
import hashlib
import json
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load, save

from clipadapter import FewShotClassifier
from clipadapter.errors import ClipAdapterError
from clipadapter.persistence.card import render_card
from clipadapter.persistence.model import to_snapshot
from clipadapter.uncertainty import UncertaintyOptions

MEMORY_BYTES = 4 << 30
SECONDS_EACH = 20
HEADS = ("prototype", "linear-probe", "tip-adapter", "gda", "knn", "zero-shot")
ODD = (
    *(None, True, False, "", "x", "\0", "../../x", [], {}, [[]], {"a": 1}, 0, -1, 1, 2, 3, 7, 255, 1 << 16, 1 << 31),
    *(1 << 53, 1 << 63, 10**30, -(1 << 63), 0.5, -0.5, 1e-300, 1e300, float("inf"), float("nan"), "9" * 5000),
)
ODD_NUMBERS = (0.0, -1.0, 1e-38, 1e20, 3e38, -3e38, float("inf"), float("nan"), 1e300)


EDITS = {
    "correct": lambda model, pictures: model.correct(pictures[:1], [model.class_names_[-1]]),
    "add_class": lambda model, pictures: model.add_class("new", pictures[:2]),
    "rename_class": lambda model, _: model.rename_class(model.class_names_[0], "other"),
    "remove_class": lambda model, _: model.remove_class(model.class_names_[0]),
    "undo": lambda model, _: model.undo(),
    "card": lambda model, _: render_card(to_snapshot(model._to_model()).config),
    "repr": lambda model, _: repr(model) + model._repr_html_(),
}
"""What a person may do with a model, in this order."""


class Late(BaseException):
    """A model took too long."""


def stop(*_):
    """End what takes too long."""
    raise Late


def places_in(node, path=()):
    """Every place in nested lists and objects."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(items):
        yield node, key, (*path, key)
        yield from places_in(value, (*path, key))


def alter_config(config, rng):
    """Change, remove or add one thing; gives what was done."""
    parent, key, path = rng.choice(list(places_in(config)))
    how = rng.randrange(6)
    if how == 0:
        del parent[key]
    elif how == 1 and isinstance(parent, list):
        parent.append(parent[key])
    elif how == 2:
        parent[key] = [parent[key]]
    elif how == 3 and isinstance(parent[key], int | float):
        parent[key] = parent[key] * rng.choice([-1, 2, 1000, 1 << 31, 1e-9])
    else:
        parent[key] = rng.choice(ODD)
    return f"{path} (way {how})"


def alter_arrays(files, rng):
    """Change one array of one file; gives what was done."""
    name = rng.choice(sorted(files))
    arrays = dict(files[name])
    key = rng.choice(sorted(arrays))
    array, how = arrays[key].copy(), rng.randrange(7)
    if how == 0:
        del arrays[key]
    elif how == 1:
        arrays[key] = np.concatenate([array, array]) if array.ndim else array[None]
    elif how == 2:
        arrays[key] = array.astype(rng.choice(["float16", "float64", "int64", "uint8", "bool", "float32"]))
    elif how == 3:
        arrays[key] = array.reshape(-1)
    elif how == 4:
        arrays[key] = array[:0] if array.ndim else array
    elif array.size:
        flat = array.reshape(-1)
        number = rng.choice(ODD_NUMBERS) if array.dtype.kind == "f" else rng.choice([-1, 0, 99, 1 << 31, 1 << 62])
        rows = slice(None) if how == 5 else rng.randrange(flat.size)
        with np.errstate(all="ignore"):
            flat[rows] = np.float64(number).astype(array.dtype) if array.dtype.kind == "f" else flat.dtype.type(1)
            if array.dtype.kind in "iu":
                flat[rows] = np.int64(number).astype(array.dtype)
        arrays[key] = flat.reshape(array.shape)
    files[name] = arrays
    return f"{name} {key} (way {how})"


def write(folder, config, files):
    """A model's folder with sound hashes."""
    for name, arrays in files.items():
        blob = save({key: np.asarray(array, order="C") for key, array in arrays.items()})
        digest = hashlib.sha256(blob).hexdigest()
        (folder / "arrays").mkdir(exist_ok=True)
        (folder / "arrays" / f"{name}-{digest[:16]}.safetensors").write_bytes(blob)
        config["files"][name] = digest


def write_config(folder, config):
    """The config with a checksum of its content."""
    config.pop("checksum", None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps({**config, "checksum": digest}))


def attempt(folder, pictures):
    """The outcome of loading and asking; "" if a rule was broken, with what."""
    try:
        model = FewShotClassifier.load(folder, cache=None, device="cpu")
        if not np.isfinite(model.logits(pictures)).all():
            return "", "logits that are not finite"
        answers = model.classify(pictures)
        if not all(np.isfinite(answer.probability) for answer in answers):
            return "", "a probability that is no number"
    except ClipAdapterError as error:
        return type(error).__name__, ""
    except BaseException as error:  # noqa: BLE001
        return "", describe(error)
    for name, edit in EDITS.items():
        try:
            edit(model, pictures)
            model.save(folder)
        except ClipAdapterError:
            continue
        except BaseException as error:  # noqa: BLE001
            return "", f"{name}: {describe(error)}"
    return "answered", ""


def describe(error):
    """An error, and the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:100]} ({Path(last.filename).name}:{last.lineno})"


def main(root, seed, models):
    """Try altered models; see the module."""
    rng = random.Random(seed)
    colours = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 200)}
    noise = np.random.default_rng(0)
    images = [
        np.clip(np.array(colour) + noise.integers(-30, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
        for colour in colours.values()
        for _ in range(4)
    ]
    labels = [name for name in colours for _ in range(4)]
    whole = {}
    for head in HEADS:
        uncertainty = UncertaintyOptions() if head == "zero-shot" else UncertaintyOptions(reject=0.1, coverage=0.75)
        fitted = FewShotClassifier("toy", head, cache=None, uncertainty=uncertainty).fit(images, labels)
        folder = fitted.save(root / "whole" / head)
        config = (folder / "config.json").read_text()
        whole[head] = (
            config,
            {path.name.split("-")[0]: load(path.read_bytes()) for path in folder.glob("arrays/*.safetensors")},
        )
    counts, faults, folder = collections.Counter(), [], root / "altered"
    for i in range(models):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        head = rng.choice(HEADS)
        config, files = json.loads(whole[head][0]), dict(whole[head][1])
        if rng.random() < 0.5:
            what = alter_arrays(files, rng)
            write(folder, config, files)
        else:
            write(folder, config, files)
            what = alter_config(config, rng)
        write_config(folder, config)
        signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)  # of the processor: other programs do not matter
        outcome, fault = attempt(folder, images[::4])
        signal.setitimer(signal.ITIMER_PROF, 0)
        counts[outcome or "broken"] += 1
        if fault:
            faults.append(f"model {i}, {head}, {what}: {fault}")
    sys.stdout.write(json.dumps({"models": models, "counts": counts, "faults": faults}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, stop)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
