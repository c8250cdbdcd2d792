"""``clipadapter version``."""

from __future__ import annotations

import platform

from clipadapter.cli.groups import cli_command
from clipadapter.cli.output import Fact, Output

PACKAGES = ("clipadapter", "torch", "open_clip_torch", "scikit-learn", "onnxruntime", "openvino")


@cli_command("clipadapter version --json")
def command(out: Output) -> None:
    """Show the versions of the main packages, and the cache folder."""
    from clipadapter.utils.files import default_cache_dir

    versions = {name: _version(name) for name in PACKAGES}
    versions = {"clipadapter": versions.pop("clipadapter"), "python": platform.python_version(), **versions}
    versions["cache"] = str(default_cache_dir())
    out.facts([Fact(name, value, value, name) for name, value in versions.items()])


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
