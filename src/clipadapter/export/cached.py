"""Export a saved model into the cache folder, where `clipadapter.runtime.cached` finds it."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from clipadapter.backends.formats import get_format, list_formats
from clipadapter.classifier import FewShotClassifier
from clipadapter.errors import InputError, MissingExtraError
from clipadapter.export.exporter import export_model
from clipadapter.export.parity import MIN_ROWS
from clipadapter.export.pictures import draw_pictures
from clipadapter.runtime.cached import cached_export, can_answer, is_intact

MAX_WEIGHTS = 32_000_000
"""Models with larger image towers are exported by `serve` only: that takes many seconds, and a second copy of them."""
MAX_FILES = 20
"""Older files are removed; they can be made again."""
REFUSED_SUFFIX = ".refused"
"""Suffix of an empty file that says that a model can't be exported, so that it is not tried again."""


def export_to_cache(model: FewShotClassifier, folder: str | Path, *, load_tower: bool = False) -> bool:
    """Export a saved model into the cache folder, if that is cheap; whether the file is there.

    Image towers that are not in memory, because all features were stored ones, are only loaded with ``load_tower``.
    """
    if model.head_.tunes_encoder or not can_answer(Path(folder)):
        return False
    for name in list_formats():
        path = cached_export(Path(folder), name)
        refused = path.with_suffix(REFUSED_SUFFIX)
        if is_intact(path) or refused.exists():
            return not refused.exists()
        try:
            get_format(name).check_convertible("fp32")
        except MissingExtraError:
            continue
        towers = model.encoder_.towers()
        if not load_tower and any("module" not in vars(tower) for tower in towers):
            return False
        try:
            if sum(each.numel() for tower in towers for each in tower.module.parameters()) > MAX_WEIGHTS:
                raise InputError(f"the image tower has more than {MAX_WEIGHTS} weights")
            size = max((tower.pixels.size for tower in towers), default=0)
            export_model(model, path, format=name, pictures=draw_pictures(MIN_ROWS, size))
        except Exception as error:  # the model is saved and answers without the file
            logging.getLogger(__name__).info("%s was not exported to the cache: %s", folder, error)
            if not isinstance(error.__cause__ or error, OSError):  # a full disk may have room the next time
                with suppress(OSError):
                    refused.parent.mkdir(parents=True, exist_ok=True)
                    refused.touch()
        with suppress(OSError):
            _remove_old_files(path.parent)
        return path.exists()
    return False


def _remove_old_files(folder: Path) -> None:
    newest_first = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in newest_first[MAX_FILES:]:
        if path.is_file():
            path.unlink(missing_ok=True)
