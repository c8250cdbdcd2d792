"""Damages a feature store, and looks at what it then gives.

    python tests/robustness/mutate_store.py FOLDER SEED STORES

It writes one JSON object: how many stores were tried, the exceptions by name, and every rule that was broken.
"""

import collections
import json
import random
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

from clipadapter.errors import StoreError
from clipadapter.features import FeatureStore

MEMORY_BYTES = 4 << 30
SECONDS_EACH = 20
N, DIM = 400, 64


class Late(BaseException):
    """A store took too long."""


def mutate(data, rng):
    """A copy with a flipped bit, zeros, random bytes, or one page in the place of another; "head": of the schema."""
    data, kind = bytearray(data), rng.choice(["bit", "bit", "bit", "byte", "zeros", "page", "cut", "head", "head"])
    at = rng.randrange(len(data))
    if kind == "head":
        schema = data.index(b"CREATE TABLE")
        at = rng.choice([*range(100), *range(schema - 40, schema + 120)])
    size = rng.choice([8, 512, 4096])
    if kind == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif kind in ("byte", "head"):
        data[at] = rng.randrange(256)
    elif kind == "zeros":
        data[at : at + size] = bytes(len(data[at : at + size]))
    elif kind == "page":
        pages = len(data) // PAGE
        here, there = PAGE * rng.randrange(1, pages), PAGE * rng.randrange(1, pages)
        data[here : here + PAGE] = data[there : there + PAGE]
    else:
        del data[at:]
    return bytes(data), f"{kind} at {at}"


def use(path, items, rng):
    """Ask for entries in all ways, and put what is missing; gives what is wrong."""
    keys, faults = list(items), []

    def check(found, asked):
        if not set(found) <= set(asked):
            faults.append("a key that was not asked for")
        faults.extend("wrong value" for key, row in found.items() if not np.array_equal(row, items[key]))

    with FeatureStore(path) as store:
        for size in (1, 17, N):
            asked = rng.sample(keys, size)
            check(store.get_many(asked, DIM), asked)
        store.put_many(items)
        check(store.get_many(keys, DIM), keys)
    return faults


def main(folder, seed, stores):
    """Try damaged stores; see the module."""
    rng, path = random.Random(seed), folder / "store.sqlite"
    values = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
    items = {rng.randbytes(32): row for row in values}
    with FeatureStore(path) as store:
        store.put_many(items)
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = path.read_bytes()
    counts, faults, longest = collections.Counter(), [], 0.0
    for i in range(stores):
        for old in folder.iterdir():
            old.unlink()
        data, what = mutate(whole, rng)
        path.write_bytes(data)
        begin = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS_EACH)  # of the processor, so that other programs do not matter
        try:
            found = use(path, items, rng)
            counts["ended well"] += 1
            faults += [f"store {i}, {what}: {one}" for one in found]
        except StoreError:
            counts["StoreError"] += 1
        except BaseException as error:  # noqa: BLE001
            faults.append(f"store {i}, {what}: {type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        longest = max(longest, time.process_time() - begin)
    sys.stdout.write(json.dumps({"stores": stores, "counts": counts, "longest": longest, "faults": faults}))


def stop(*_):
    """End what takes too long."""
    raise Late


if __name__ == "__main__":
    PAGE = 16384
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGPROF, stop)
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
