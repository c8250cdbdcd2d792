"""Write what is known of open_clip's models without importing it, for ``clipadapter encoders`` and for wrong names.

    python scripts/make_open_clip_models.py

Run it again for a new release of open_clip. A test compares the file with the installed open_clip.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import version

from clipadapter.encoders.catalogue import MODELS_FILE
from clipadapter.encoders.open_clip_sources import describe_models
from clipadapter.files import write_atomically


def main() -> None:
    """Describe all models and write the file into the package, one model per line."""
    logging.disable(logging.WARNING)  # open_clip warns that the networks have no weights
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in describe_models().items())
    head = f'"open_clip": {json.dumps(version("open_clip_torch"))},\n "models": '
    write_atomically(MODELS_FILE, f"{{{head}{{\n{lines}\n }}}}\n".encode())
    sys.stdout.write(f"wrote {MODELS_FILE}, {MODELS_FILE.stat().st_size / 1e3:.0f} KB\n")


if __name__ == "__main__":
    main()
