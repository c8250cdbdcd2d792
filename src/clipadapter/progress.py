"""Progress bars: on stderr, or as widgets in a notebook."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

KERNEL_MODULES = ("ipykernel.zmqshell", "IPython.utils._process_emscripten")
"""Modules that a running kernel of a notebook has imported: Jupyter, Colab and VS Code; JupyterLite."""


BRIEF_SECONDS = 0.5
"""A fit that takes less shows no bar: the fits of folds would show one after the other."""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. Nothing is imported."""
    return any(module in sys.modules for module in KERNEL_MODULES)


def shows_progress(progress: bool | None) -> bool:
    """Whether progress bars are shown.

    Args:
        progress: what the user chose; None for the default, which is to show them in notebooks only.
    """
    return in_notebook() if progress is None else progress


def progress_bar(iterable: Iterable[Any] | None = None, *, shown: bool, **options: Any) -> tqdm[Any]:
    """A bar of tqdm: a widget in a notebook that has ipywidgets, else text on stderr.

    Args:
        iterable: what the bar counts; None for a bar that is updated by its methods.
        shown: False for a bar that writes nothing.
        options: of tqdm, such as ``total``, ``desc`` and ``unit``.
    """
    if shown and in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as notebook_tqdm

        widget: tqdm[Any] = notebook_tqdm(iterable, **options)
        return widget
    from tqdm import tqdm

    return tqdm(iterable, file=sys.stderr, disable=not shown, **options)
