"""``clipadapter version``."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from clipadapter.cli.options import output_options
from clipadapter.cli.output import Output, facts

PACKAGES = ("clipadapter", "torch", "open_clip_torch", "scikit-learn", "onnxruntime", "openvino")


@click.command(epilog="Example: clipadapter version --json")
@output_options
def command(out: Output) -> None:
    """Show the versions of what matters, and the cache folder."""
    from clipadapter.cache import default_cache_dir

    found = {name: _version(name) for name in PACKAGES}
    found = {"clipadapter": found.pop("clipadapter"), "python": platform.python_version(), **found}
    found["cache"] = str(default_cache_dir())
    out.result(found, facts(list(found.items())))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
