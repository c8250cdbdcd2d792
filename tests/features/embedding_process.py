"""Embeds a folder with the toy encoder; writes "commit" before each commit, and waits until a line comes on stdin.

Usage: embedding_process.py STORE FOLDER BATCH_SIZE
"""

import sys
from pathlib import Path

from clipadapter.encoders import create_encoder
from clipadapter.features import FeatureStore, extract


def stop(statement):
    if statement == "COMMIT":
        sys.stdout.write("commit\n")
        sys.stdout.flush()
        sys.stdin.readline()


if __name__ == "__main__":
    store_path, folder, batch_size = sys.argv[1:]
    with FeatureStore(store_path) as store:
        store._db.set_trace_callback(stop)  # SQLite calls it before it runs the statement
        paths = sorted(Path(folder).iterdir())
        extract(create_encoder("toy"), paths, store=store, batch_size=int(batch_size), workers=2, keep=False)
