"""Write the embeddings of the ImageNet names that the encoder ``lite`` maps texts by.

    python scripts/make_lite_names.py

Run it again if timm changes its names, or `clipadapter.encoders.lite_text` the weights or templates of the texts. A
test compares the file with the names of the installed timm.
"""

from __future__ import annotations

import sys

from clipadapter.encoders.lite_text import NAMES_FILE, MiniLm, embed_names, serialize_names
from clipadapter.utils.files import write_atomically


def main() -> None:
    """Embed the names and write the file into the package."""
    write_atomically(NAMES_FILE, serialize_names(embed_names(MiniLm("cpu"))))
    sys.stdout.write(f"wrote {NAMES_FILE}, {NAMES_FILE.stat().st_size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
