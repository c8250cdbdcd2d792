"""Fetches what torchvision can fetch, into the layout that the sets are read from.

The download works in a folder of its own, and its results are moved when it has ended: what lies at its place is whole.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from clipadapter.data.sets._base import BenchmarkSet, Download, Need, data_root, is_filled
from clipadapter.data.sets._registry import create_set
from clipadapter.errors import DataError

_STAGE = ".download"
_ARCHIVES = (".gz", ".tgz", ".tar", ".zip")


@dataclass(frozen=True)
class Prepared:
    """What came of preparing a set.

    Args:
        name: of the set.
        fetched: whether pictures were downloaded; not if they were there already.
        missing: what has to be put there by hand.
        differences: how the set differs from the one of the papers; empty while something is missing.
    """

    name: str
    fetched: bool
    missing: tuple[Need, ...]
    differences: tuple[str, ...]


def prepare(name: str, root: str | Path | None = None) -> Prepared:
    """Download the pictures of a set if they can be and are not there, and check what is there.

    A download that was interrupted is begun again, but archives that are whole are kept.

    Args:
        name: of the set.
        root: as for `data_root`.

    Raises:
        UnknownNameError: if no set has the name.
        DataError: if the download fails, or what is there is damaged.
    """
    one = create_set(name)
    fetched = False
    if one.download is not None and any(need.fetched for need in one.missing(root)):
        _fetch(one, one.download, data_root(root) / one.folder)
        fetched = True
        gone = [need.path for need in one.missing(root) if need.fetched]
        if gone:
            raise DataError(f"torchvision's {one.download.dataset} did not bring {gone[0]}; put it there by hand")
    missing = one.missing(root)
    differences = () if missing else tuple(one.differences(one.load(root)))
    return Prepared(name, fetched, missing, differences)


def _fetch(one: BenchmarkSet, download: Download, folder: Path) -> None:
    import torchvision

    stage = folder / _STAGE
    try:
        _clean(stage, download.checksum)
        stage.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, download.dataset)(str(stage), download=True)
        _move(stage / download.kept, folder)
        shutil.rmtree(stage)
    except (OSError, RuntimeError, ValueError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        again = f"run 'clipadapter data prepare {one.name}' again"
        hand = f"'clipadapter data info {one.name}' says what to put where by hand"
        raise DataError(f"the download of '{one.name}' failed ({error}): {again}; {hand}") from error


def _clean(stage: Path, keep_archives: bool) -> None:
    """Remove what an interrupted run unpacked: torchvision takes a folder that exists for whole.

    Archives are kept if torchvision compares their checksums.
    """
    if not stage.exists():
        return
    if not keep_archives:
        shutil.rmtree(stage)
        return
    for path in sorted(stage.rglob("*"), reverse=True):  # what is in a folder comes before it
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.suffix not in _ARCHIVES:
            path.unlink()


def _move(source: Path, folder: Path) -> None:
    """Move all but archives; what is there already stays."""
    for path in sorted(source.iterdir()):
        target = folder / path.name
        if (path.is_file() and path.suffix in _ARCHIVES) or is_filled(target):
            continue
        if target.is_dir():
            target.rmdir()
        path.replace(target)
