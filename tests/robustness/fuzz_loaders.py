"""Fuzzes what reads files of other people, with coverage of the code: it may answer or raise an error of the library.

Needs atheris (``pip install atheris``), which is no dependency of the package::

    python tests/robustness/fuzz_loaders.py CORPUS -max_total_time=600 -rss_limit_mb=4096

CORPUS is a folder that inputs are kept in; the first ones are made here. The first byte of an input chooses the reader,
the rest is the file. An input that breaks one is written as ``crash-...``; add it to `FOUND`, so that the tests try it.
"""

import importlib
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

FUZZING = __name__ == "__main__"
atheris: Any = importlib.import_module("atheris") if FUZZING else None

# Only code of this package counts as covered: torch's would hide it.
with atheris.instrument_imports(include=["clipadapter"]) if FUZZING else nullcontext():
    from clipadapter.bench.bundle import BUNDLE_FILE, load_bundle
    from clipadapter.bench.run import parse_run
    from clipadapter.bench.suite import load_suite
    from clipadapter.data import load_dataset, read_class_names, read_descriptions
    from clipadapter.data.sets.layouts import read_split
    from clipadapter.errors import ClipAdapterError
    from clipadapter.features import FeatureStore
    from clipadapter.persistence import load_model
    from clipadapter.runtime import ExportMetadata
    from clipadapter.studio.journal import Journal
    from clipadapter.uncertainty.costs import read_costs

Reader = Callable[[Path], object]
"""Reads the file at a path; what else it needs lies beside it."""


def about(path):
    return ExportMetadata.from_json(path.read_bytes().decode(errors="replace"))


def journal(path):
    return Journal(path.parent, path)


def store(path):
    for name in ("-wal", "-shm"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    with FeatureStore(path) as opened:
        return opened.get_many([bytes(32)], 4)


def model(path):
    """The config is the file's; the arrays are those of a whole model."""
    folder = path.parent / "model"
    if not folder.is_dir():
        whole_model().save(folder)
    (folder / "config.json").write_bytes(path.read_bytes())
    return load_model(folder)


@cache
def whole_model():
    from clipadapter import FewShotClassifier

    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (8, 8, 3), dtype=np.uint8) for _ in range(4)]
    return FewShotClassifier("toy", head="prototype", cache=None).fit(pictures, ["a", "b"] * 2)


SOUND: tuple[tuple[str, Reader, tuple[bytes, ...]], ...] = (
    ("a.json", read_class_names, (b'{"n1": "cup"}', b'\xef\xbb\xbf{"n1": "\\ud83d\\ude00"}')),
    ("a.json", read_descriptions, (b'{"cup": ["A cup.", "One."]}',)),
    (
        "a.json",
        lambda path: read_split(path, path.parent),
        (b'{"train": [["a.jpg", 0, "a"]], "test": [["b", 1, "b"]]}',),
    ),
    ("a.toml", load_suite, (b'title = "t"\nheads = ["knn"]\nshots = [1]', b'title = "t"\n[[heads]]\nhead = "knn"\n')),
    ("a.jsonl", load_dataset, (b'{"path": "a.jpg", "label": "a"}\n{"path": "b", "labels": ["a"], "split": "val"}\n',)),
    ("a.csv", load_dataset, (b'path,label,split\n"a,b",c,test\n', b"\xef\xbb\xbfpath,labels\na,b|c\n")),
    ("a.csv", lambda path: read_costs(path, ["a", "b"]), (b"true,a,b\na,0,1\nb,2.5,0\n",)),
    ("a.json", lambda path: parse_run("a.json", path.read_bytes()), (b'{"format": 2}', b'{"format": 99}')),
    (
        BUNDLE_FILE,
        lambda path: load_bundle(path.parent),
        (save({"support": np.ones((1, 2))}, {"facts": '{"format": 1, "support": {"class_names": ["a"]}}'}),),
    ),
    (
        "journal.jsonl",
        journal,
        (
            b'{"step": 1, "what": "w", "moves": [["a", "b"]], "folders": ["f"], "before": {}, "after": {"f": "n"}}\n'
            b'{"done": 1}\n{"undo": 1}\n',
        ),
    ),
    (
        "a.json",
        about,
        (b'{"format": 1, "class_names": ["a", "b"], "uncertainty_arrays": {}, "uncertainty": {}, "inputs": []}',),
    ),
)
"""(name of the file, reader, first inputs); the tests try these readers without atheris too."""
FOUND: dict[int, tuple[bytes, ...]] = {
    4: (b'{"\\ud800": "a"}\n',),
    5: (b"path,labels\n" + b"a" * 300 + b",b|c\n",),
    9: (b'{"step": Infinity, "what": "w", "moves": [], "folders": [], "before": {}, "after": {}}\n',),
}
"""Inputs, by the number of the reader, that broke it once."""


@cache
def store_bytes() -> bytes:
    """A store with one vector, of a few KiB."""
    with tempfile.TemporaryDirectory() as folder:
        with FeatureStore(Path(folder) / "s.sqlite") as opened:
            opened.put_many({bytes(32): np.ones(4, np.float32)})
        return (Path(folder) / "s.sqlite").read_bytes()


@cache
def config_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        whole_model().save(Path(folder) / "m")
        return (Path(folder) / "m" / "config.json").read_bytes()


def readers() -> list[tuple[str, Reader, tuple[bytes, ...]]]:
    """All of them, with those whose first input has to be made."""
    return [*SOUND, ("s.sqlite", store, (store_bytes(),)), ("config.bytes", model, (config_bytes(),))]


def try_one(folder: Path, chosen: tuple[str, Reader, tuple[bytes, ...]], data: bytes) -> None:
    """Read bytes; what is raised must be an error of the library whose text can be written."""
    name, reader, _ = chosen
    (folder / name).write_bytes(data)
    try:
        reader(folder / name)
    except ClipAdapterError as error:
        str(error).encode()


def main() -> None:
    with suppress(OSError):
        corpus = Path(sys.argv[1])
        for number, (_, _, inputs) in enumerate(readers()):
            for i, data in enumerate((*inputs, *FOUND.get(number, ()))):
                (corpus / f"first-{number}-{i}").write_bytes(bytes([number]) + data)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(number) for number in range(len(readers()))]
        for place in places:
            place.mkdir()

        def try_input(data: bytes) -> None:
            if data:
                number = data[0] % len(places)
                try_one(places[number], readers()[number], data[1:])

        atheris.Setup(sys.argv, try_input)
        atheris.Fuzz()


if FUZZING:
    main()
