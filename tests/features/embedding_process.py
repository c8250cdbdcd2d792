"""Embeds a folder with the toy encoder; stops before each batch and each commit until a line comes on stdin.

Usage: embedding_process.py STORE FOLDER BATCH_SIZE WORD...; WORD is what to stop at: "encode", "commit".
Writes "encode" and "commit" when it stops, at the end "done COMPUTED CACHED".
"""

import sys
from pathlib import Path

from clipadapter.encoders import create_encoder
from clipadapter.features import FeatureStore, embed


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(store_path, folder, batch_size, *words):
    def stop(word):
        if word in words:
            say(word)
            sys.stdin.readline()

    encoder = create_encoder("toy")
    encode_pixels = encoder.encode_pixels

    def slow(pixels):
        stop("encode")
        return encode_pixels(pixels)

    encoder.encode_pixels = slow
    with FeatureStore(store_path) as store:
        # SQLite calls back before it runs the statement.
        store._db.set_trace_callback(lambda statement: stop(statement.lower()))
        result = embed(encoder, sorted(Path(folder).iterdir()), store, batch_size=int(batch_size), workers=2)
    say(f"done {result.computed} {result.cached}")


if __name__ == "__main__":
    main(*sys.argv[1:])
