"""Copy expected outputs of the authors' code into the tests.

Reads a folder with golden.safetensors and meta.json, the results of a published method's own code on small random
inputs, and copies the named tensors with their origin as metadata:

    python scripts/copy_golden.py FOLDER NAME...
    python scripts/copy_golden.py FOLDER --to tuners 'tower.*' NAME...

Names can have wildcards. Without names, the tensors that were copied before are copied again.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import load_file, save_file

TESTS = Path(__file__).parent.parent / "tests"
MAX_FILE_BYTES = 80_000
"""Largest size of a file: tests contain expected values, not data sets."""


def origin(meta: dict[str, object]) -> dict[str, str]:
    """Repository, commit and parameters of a run, in one format."""
    repo, commit = str(meta.get("repo", "")), str(meta.get("commit", ""))
    sources = meta.get("sources")
    if isinstance(sources, list):
        repo = " ".join(source["repo"] for source in sources)
        commit = " ".join(source["commit"] for source in sources)
    return {"repo": repo, "commit": commit, "parameters": json.dumps(meta.get("parameters", {}))}


def main(folder: Path, patterns: list[str], to: str, largest: int) -> None:
    """Write ``tests/<to>/golden/<method>.safetensors``."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    out = TESTS / to / "golden" / f"{meta['method']}.safetensors"
    if not patterns:
        with safe_open(out, framework="numpy") as copied:
            patterns = list(copied.keys())
    tensors = load_file(folder / "golden.safetensors")
    if missing := sorted(name for name in patterns if not fnmatch.filter(tensors, name)):
        raise SystemExit(f"{folder} has no {', '.join(missing)}; it has: {', '.join(sorted(tensors))}")
    names = {name for pattern in patterns for name in fnmatch.filter(tensors, pattern)}
    out.parent.mkdir(exist_ok=True)
    save_file({name: tensors[name] for name in sorted(names)}, out, metadata=origin(meta))
    if (size := out.stat().st_size) > largest:
        out.unlink()
        raise SystemExit(f"{out.name} would have {size} bytes, more than {largest}: name fewer tensors")
    sys.stdout.write(f"{out.name}: {len(names)} tensors, {size} bytes\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--to", default="heads", help="folder of the tests that use them")
    parser.add_argument("--largest", type=int, default=MAX_FILE_BYTES, help="bytes; more only for a tower's weights")
    args = parser.parse_intermixed_args()
    main(args.folder, args.names, args.to, args.largest)
