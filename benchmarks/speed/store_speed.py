"""Speed of the feature store beside plain sqlite3: same table, page size and journal, no checks, nothing decoded.

Both sides take turns on files of their own; "of plain" is the median over the rounds, so that other work on the
machine slows both. Plain sqlite3 puts rows that are made already, and gives bytes; the store makes the rows and their
checksums, tests every checksum it reads, gives float32, and has a page cache of 8 MB in place of SQLite's 2. "One a
call" is what a picture with one view costs. The last lines are the times to open the store and to count it.

    python benchmarks/speed/store_speed.py                                     # 30,000 vectors of 512 float32
    python benchmarks/speed/store_speed.py --rows 1000000 --repeats 1 --folder /tmp    # 4.5 GB on disk meanwhile
"""

import random
import sqlite3
import tempfile
from pathlib import Path
from statistics import median
from zlib import crc32

import numpy as np
from _measure import print_table, ratios, script_parser, timed, write_json

from clipadapter.features import FeatureStore

BATCH = 1000  # vectors in one transaction
SCHEMA = "CREATE TABLE feature (key BLOB PRIMARY KEY, dtype TEXT, checksum INTEGER, value BLOB)"


class Plain:
    """What one would write with sqlite3 alone."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        for pragma in ("page_size = 16384", "synchronous = NORMAL", "journal_mode = WAL"):
            self.db.execute(f"PRAGMA {pragma}")
        self.db.execute(SCHEMA)

    def put(self, rows):
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT OR IGNORE INTO feature VALUES (?, ?, ?, ?)", rows)
        self.db.execute("COMMIT")

    def get(self, keys):
        for i in range(0, len(keys), 500):
            chunk = keys[i : i + 500]
            marks = ",".join("?" * len(chunk))
            self.db.execute(f"SELECT * FROM feature WHERE key IN ({marks})", chunk).fetchall()


def batches(rows: int, dim: int):
    """Key to vector, a transaction's at a time; made anew each time, since a million would not fit into memory."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, BATCH):
        values = rng.standard_normal((min(BATCH, rows - start), dim), dtype=np.float32)
        yield {rng.bytes(32): value for value in values}


def seconds(work, *args) -> float:
    return timed(lambda: work(*args))[1]["seconds"]


def one_round(folder: Path, rows: int, dim: int) -> dict[str, tuple[float, float]]:
    """Seconds of plain sqlite3 and of the store for each kind of work, on new files."""
    plain, keys, times = Plain(folder / "plain.sqlite"), [], {"put_many": [0.0, 0.0]}
    with FeatureStore(folder / "store.sqlite") as store:
        for items in batches(rows, dim):
            made = [(key, "float32", crc32(vector.tobytes()), vector.tobytes()) for key, vector in items.items()]
            times["put_many"][0] += seconds(plain.put, made)
            times["put_many"][1] += seconds(store.put_many, items)
            keys += items
        shuffled = random.Random(0).sample(keys, len(keys))
        for order, wanted in (("in order", keys), ("shuffled", shuffled)):
            both = times[f"get_many, {order}"] = [0.0, 0.0]
            for i in range(0, len(wanted), 5000):
                both[0] += seconds(plain.get, wanted[i : i + 5000])
                both[1] += seconds(store.get_many, wanted[i : i + 5000], dim)
        times["get_many, one a call"] = [
            seconds(lambda: [plain.get([key]) for key in shuffled]),
            seconds(lambda: [store.get_many([key], dim) for key in shuffled]),
        ]
    plain.db.close()
    return {name: (both[0], both[1]) for name, both in times.items()}


def measure_opening(path: Path) -> dict[str, float]:
    """Milliseconds to open a store and to count its rows."""
    store, opening = timed(lambda: FeatureStore(path))
    with store:
        return {"open_ms": 1e3 * opening["seconds"], "len_ms": 1e3 * seconds(len, store), "rows": len(store)}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are made and deleted; the system's one by default")
    args = parser.parse_args()
    rounds, rows = [], []
    for last in reversed(range(args.repeats)):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            rounds.append(one_round(Path(folder), args.rows, args.dim))
            if last:
                continue
            for name in rounds[0]:
                plain, store = (args.rows / median(times[name][side] for times in rounds) for side in (0, 1))
                ratio = ratios(*([times[name][side] for times in rounds] for side in (0, 1)))
                rows.append({"work": name, "plain": plain, "store": store, "ratio": ratio})
            whole = measure_opening(Path(folder) / "store.sqlite")
    print_table(rows)
    print_table([whole])
    size = {"vectors": args.rows, "width": args.dim, "dtype": "float32"}
    write_json(args.json, **size, rounds=args.repeats, rows=rows, whole=whole)


if __name__ == "__main__":
    main()
