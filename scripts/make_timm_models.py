"""Write what is known of timm's models without importing it, for ``clipadapter encoders`` and for wrong names.

    python scripts/make_timm_models.py

Run it again for a new release of timm; it takes some minutes. A test compares the file with the installed timm.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import version

from clipadapter.encoders.catalogue import TIMM_MODELS_FILE
from clipadapter.encoders.timm_sources import describe_models, list_untrained
from clipadapter.files import write_atomically


def main() -> None:
    """Describe all models and write the file into the package, one model per line."""
    logging.disable(logging.WARNING)
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(facts)}" for name, facts in describe_models().items())
    head = f'"timm": {json.dumps(version("timm"))},\n "untrained": {json.dumps(list_untrained())},\n "models": '
    write_atomically(TIMM_MODELS_FILE, f"{{{head}{{\n{lines}\n }}}}\n".encode())
    sys.stdout.write(f"wrote {TIMM_MODELS_FILE}, {TIMM_MODELS_FILE.stat().st_size / 1e3:.0f} KB\n")


if __name__ == "__main__":
    main()
