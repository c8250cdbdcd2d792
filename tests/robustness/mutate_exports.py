"""Mutated exports, opened in a process without torch and with limited memory.

Run as `python mutate_exports.py FOLDER COUNT SEED`; the folder holds sound exports. Each mutation must be refused by an
error of the library. A mutated description that has a right checksum is either refused so, or answers with numbers.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np

from clipadapter.errors import ClipAdapterError
from clipadapter.runtime import ExportMetadata, Predictor
from clipadapter.uncertainty import DecisionOptions

MEMORY_BYTES = 4 << 30


def mutated_bytes(data, rng):
    """Bytes as a bad disk, a broken copy or a cut transfer leaves them."""
    out = bytearray(data)
    place, length = rng.randrange(len(out)), rng.choice((1, 16, 4096))
    kind = rng.randrange(6)
    if kind == 0:
        out[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        out[place : place + length] = bytes(min(length, len(out) - place))
    elif kind == 2:
        out[place : place + length] = rng.randbytes(min(length, len(out) - place))
    elif kind == 3:
        del out[place:]
    elif kind == 4:
        del out[place : place + length]
    else:
        out[place:place] = out[:length]
    return bytes(out)


def mutated_facts(value, rng):
    """A description in which one place is another value."""
    strange = (None, True, -1, 0, 2**63, 1e308, 10**400, "", "x", [], {}, [[[]]], {"a": 1}, "9" * 5000, "\ud800")
    if rng.random() < 0.3 or not isinstance(value, dict | list) or not value:
        return rng.choice(strange)
    if isinstance(value, dict):
        key = rng.choice(sorted(value))
        if rng.random() < 0.1:
            return {name: each for name, each in value.items() if name != key}
        return {**value, key: mutated_facts(value[key], rng)}
    place = rng.randrange(len(value))
    return [*value[:place], mutated_facts(value[place], rng), *value[place + 1 :]]


def fault_of_file(path):
    """What is wrong with how a mutated file is met; None if it is refused as it should be.

    Its checksum refuses it, or that it lost it.
    """
    try:
        Predictor(path)
    except ClipAdapterError:
        return None
    except Exception as error:
        return repr(error)
    return "not noticed"


def fault_of_description(text):
    """What is wrong with how a mutated description is met; None if it is refused, or answers with numbers."""
    try:
        about = ExportMetadata.from_json(text)
        rejector = about.uncertainty.rejector
        columns = None if rejector is None else np.ones((2, len(rejector.parts)))
        logits = np.ones((2, len(about.class_names)))
        told = about.uncertainty.answer(logits, np.ones((2, 3)), DecisionOptions(), columns=columns)
    except ClipAdapterError:
        return None
    except Exception as error:
        return repr(error)
    return None if np.isfinite(told.probabilities).all() else "not finite"


def faults_of_files(folder, count, rng):
    for name in ("sound.onnx", "sound.xml", "sound.bin"):
        for other in folder.glob("sound.*"):
            (folder / f"mutated{other.suffix}").write_bytes(other.read_bytes())
        whole, target = (folder / name).read_bytes(), (folder / name).with_stem("mutated")
        for _ in range(count):
            data = mutated_bytes(whole, rng)
            target.write_bytes(data)
            fault = fault_of_file(target.with_suffix(".xml") if target.suffix == ".bin" else target)
            if fault is not None and data != whole:  # zeros may be written over zeros
                yield f"{name}: {fault}"


def faults_of_descriptions(folder, count, rng):
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    for _ in range(count):
        text = json.dumps(mutated_facts(facts, rng))
        fault = fault_of_description(text)
        if fault is not None:
            yield f"{fault}: {text[:300]}"


def main(folder, count, seed):
    rng = random.Random(seed)
    faults = [*faults_of_files(folder, count, rng), *faults_of_descriptions(folder, 10 * count, rng)]
    loaded = sorted({"torch", "open_clip", "sklearn", "scipy"} & set(sys.modules))
    sys.stdout.write(json.dumps({"faults": faults, "loaded": loaded}) + "\n")


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
