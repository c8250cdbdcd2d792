"""How this package was installed, so that messages can say how to install more of it."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit


def install_command(extra: str) -> str:
    """The command that installs an extra: from the folder that the package was installed from, else by its name.

    >>> install_command("lite").startswith("pip install ")
    True
    """
    try:
        # Written by pip, see PEP 610. A package from an index has no such file.
        origin = json.loads(distribution("clipadapter").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        origin = {}
    url = urlsplit(str(origin.get("url", "")))
    folder = unquote(url.path)
    if url.scheme != "file" or not Path(folder).is_dir():
        return f"pip install 'clipadapter[{extra}]'"
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}{shlex.quote(f'{folder}[{extra}]')}"
