"""Carry golden figures of the authors' code into the tests.

Takes a folder with golden.safetensors and meta.json, in which a published method was run by its own code on small
random inputs, and keeps the named tensors with where they came from:

    python scripts/carry_golden.py FOLDER NAME...

Without names, those that are carried already are taken anew.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parent.parent / "tests" / "heads" / "golden"
LARGEST = 80_000
"""Bytes a file may have: the tests carry figures, not data sets."""


def origin(meta: dict[str, object]) -> dict[str, str]:
    """Repository, commit and parameters of a run, in one form."""
    repo, commit = str(meta.get("repo", "")), str(meta.get("commit", ""))
    sources = meta.get("sources")
    if isinstance(sources, list):
        repo = " ".join(source["repo"] for source in sources)
        commit = " ".join(source["commit"] for source in sources)
    return {"repo": repo, "commit": commit, "parameters": json.dumps(meta.get("parameters", {}))}


def main(folder: Path, names: list[str]) -> None:
    """Write ``tests/heads/golden/<method>.safetensors``."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    out = GOLDEN / f"{meta['method']}.safetensors"
    if not names:
        with safe_open(out, framework="numpy") as carried:
            names = list(carried.keys())
    tensors = load_file(folder / "golden.safetensors")
    if missing := sorted(set(names) - set(tensors)):
        raise SystemExit(f"{folder} has no {', '.join(missing)}; it has: {', '.join(sorted(tensors))}")
    save_file({name: tensors[name] for name in names}, out, metadata=origin(meta))
    if (size := out.stat().st_size) > LARGEST:
        out.unlink()
        raise SystemExit(f"{out.name} would have {size} bytes, more than {LARGEST}: name fewer tensors")
    sys.stdout.write(f"{out.name}: {len(names)} tensors, {size} bytes\n")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
