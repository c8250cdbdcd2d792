"""Runs a suite on pictures, killed or on a full disk before some operations on files, and goes on with it.

Usage: bench_faults.py FOLDER POINTS. It writes how many points were tried; what is wrong ends it with an
AssertionError.
"""

import importlib
import json
import shutil
import sys
from contextlib import nullcontext, suppress
from itertools import product
from pathlib import Path

import torch

from clipadapter import FewShotClassifier
from clipadapter.bench import open_source, read_runs, run_suite
from clipadapter.bench.launcher import Launcher
from clipadapter.bench.suite import make_suite
from clipadapter.errors import ClipAdapterError
from clipadapter.utils.parsing import parse_toml

SUITE = 'title = "t"\nheads = ["zero-shot", "prototype"]\nshots = [1]\nseeds = [1, 2]'
RECORDS = 4
TIMES = ("seconds", "machine", "created")
"""What differs between two runs of the same."""


def pictures(folder):
    for part in ("train", "test"):
        for name, letter in (("red", b"\xff\0\0"), ("green", b"\0\xff\0"), ("blue", b"\0\0\xff")):
            (folder / part / name).mkdir(parents=True)
            for i in range(2):
                data = b"P6 4 4 255\n" + letter * 12 + bytes([i, part == "test", 9]) * 4
                (folder / part / name / f"{i}.ppm").write_bytes(data)


def run(data, out):
    model = FewShotClassifier("toy", cache=None, precision="fp32")
    run_suite(
        make_suite("own", parse_toml(SUITE, "own")), [open_source(str(data))], {"toy": model}, out, Launcher(workers=1)
    )


def in_child(data, out, around, count=None):
    """The exit status of a child that runs the suite; 1 for an error that is not of the library.

    A child, since what computes with threads must not fork.
    """

    def act():
        try:
            with around:
                run(data, out)
        except ClipAdapterError:
            return 2
        if count is not None:
            count.write_text(json.dumps([OPERATIONS.count, sorted(sys.modules)]))
        return 0

    return status_of_child(act)


def records(out):
    """Runs by their key, without times."""
    return {
        run.key: {key: value for key, value in run.model_dump(mode="json").items() if key not in TIMES}
        for run in read_runs(out / "runs.jsonl")
    }


def main(folder, points):
    data, count = folder / "pictures", folder / "count"
    pictures(data)
    assert in_child(data, folder / "whole", OPERATIONS.counted(), count) == 0
    expected, (number, modules) = records(folder / "whole"), json.loads(count.read_text())
    for name in modules:  # what a run imports late is imported here, once for all children
        with suppress(ImportError):
            importlib.import_module(name)
    assert len(expected) == RECORDS
    tried = sorted({i * number // points for i in range(points)})
    for way, at in product(("killed", "full"), tried):
        out = folder / f"{way}{at}"
        status = in_child(data, out, getattr(OPERATIONS, way)(at))
        assert status != 1, f"{way} at {at}"
        assert in_child(data, out, nullcontext()) == 0, f"{way} at {at}"
        assert records(out) == expected, f"{way} at {at}"
        shutil.rmtree(out)
    sys.stdout.write(str(2 * len(tried)))


if __name__ == "__main__":
    from file_operations import Operations, status_of_child  # beside this file, and found only where it is run

    torch.set_num_threads(1)
    OPERATIONS = Operations(sys.argv[1])
    main(Path(sys.argv[1]), int(sys.argv[2]))
