"""Downloads of data sets by torchvision, into the layout from which the sets are read.

A download goes to a staging folder. Its results are moved when it has ended: so what is in place is complete.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from clipadapter.data.sets.layouts import BenchmarkSet, Download, RequiredPath, data_root, get_set, has_content
from clipadapter.errors import DataError

_STAGING_FOLDER = ".download"
_ARCHIVE_SUFFIXES = (".gz", ".tgz", ".tar", ".zip")


@dataclass(frozen=True)
class PrepareResult:
    """The result of `prepare`."""

    name: str  # of the set
    downloaded: bool  # whether pictures were downloaded; False if they existed
    missing: tuple[RequiredPath, ...]  # files and folders that must be added by hand
    differences: tuple[str, ...]  # how the set differs from the one of the papers; empty while something is missing


def prepare(name: str, root: str | Path | None = None, *, progress: bool = True) -> PrepareResult:
    """Download the pictures of a set if they are missing and can be downloaded, and check all its files.

    An interrupted download starts again, but complete archives are used again. For the root see `data_root`.

    Raises:
        UnknownNameError: if no set has the name.
        DataError: if the download fails, or a file is damaged.
    """
    benchmark_set = get_set(name)
    download, needs_download = benchmark_set.download, bool(_missing_downloads(benchmark_set, root))
    if download is not None and needs_download:
        # torchvision always shows its bar.
        with contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
            _download(benchmark_set, download, data_root(root) / benchmark_set.folder)
        if missing_downloads := _missing_downloads(benchmark_set, root):
            path = missing_downloads[0].path
            raise DataError(f"torchvision's {download.dataset} did not download {path}; add it by hand")
    missing = benchmark_set.missing_paths(root)
    differences = () if missing else tuple(benchmark_set.differences(benchmark_set.load(root)))
    return PrepareResult(name, download is not None and needs_download, missing, differences)


def _missing_downloads(benchmark_set: BenchmarkSet, root: str | Path | None) -> list[RequiredPath]:
    return [required for required in benchmark_set.missing_paths(root) if required.downloadable]


def _download(benchmark_set: BenchmarkSet, download: Download, folder: Path) -> None:
    import torchvision

    staging = folder / _STAGING_FOLDER
    try:
        _clean(staging, download.has_checksum)
        staging.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, download.dataset)(str(staging), download=True, **download.arguments)
        _move(staging / download.folder, folder)
        shutil.rmtree(staging)
    except (OSError, RuntimeError, ValueError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
        name = benchmark_set.name
        raise DataError(
            f"the download of '{name}' failed ({error}): run 'clipadapter data prepare {name}' again, or add the files "
            f"by hand as 'clipadapter data info {name}' says"
        ) from error


def _clean(staging: Path, keep_archives: bool) -> None:
    """Remove what an interrupted run unpacked: torchvision takes an existing folder as complete."""
    # Archives are kept if torchvision compares their checksums.
    if not staging.exists():
        return
    if not keep_archives:
        shutil.rmtree(staging)
        return
    for path in sorted(staging.rglob("*"), reverse=True):  # contents come before their folder
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.suffix not in _ARCHIVE_SUFFIXES:
            path.unlink()


def _move(source: Path, folder: Path) -> None:
    """Move all but archives. What exists in the target folder stays."""
    for path in sorted(source.iterdir()):
        target = folder / path.name
        if (path.is_file() and path.suffix in _ARCHIVE_SUFFIXES) or has_content(target):
            continue
        if target.is_dir():
            target.rmdir()
        path.replace(target)
