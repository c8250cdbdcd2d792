"""One function that reads any data set: a folder or a manifest, by what it is."""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path

from clipadapter.data._base import Dataset, Listing, shown
from clipadapter.data.folders import read_folder
from clipadapter.data.manifests import is_manifest, read_manifest
from clipadapter.errors import DataError

_LAYOUTS = (
    "expected one folder a class, such as ROOT/cat/1.jpg and ROOT/dog/1.jpg, optionally under ROOT/train, "
    "ROOT/val and ROOT/test, or a manifest (.csv, .tsv, .jsonl, .parquet) with the columns path and label"
)


def load_dataset(source: str | Path) -> Dataset:
    """Read a folder of pictures or a manifest; no picture is opened.

    Args:
        source: ``ROOT`` with ``CLASS/*.jpg`` or ``{train,val,test}/CLASS/*.jpg`` in it, a folder of pictures
            without classes (their labels are None), or a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file
            with the columns ``path``, ``label`` and optionally ``split``.

    Raises:
        DataError: if there is no such path, no picture in it, only one class, or a manifest is wrong.
    """
    listing = read_listing(source)
    dataset = listing.dataset
    if not dataset.samples:
        raise DataError(f"there are no pictures in '{shown(source)}'{_left_out(listing)}; {_LAYOUTS}")
    if len(dataset.class_names) == 1:
        one = f"'{shown(source)}' has only one class, '{dataset.class_names[0]}', but at least two are needed"
        raise DataError(f"{one}{_left_out(listing)}; {_LAYOUTS}")
    return dataset


def read_listing(source: str | Path) -> Listing:
    """As `load_dataset`, with what was left out, and without complaint about no pictures or one class.

    Raises:
        DataError: if there is no such path, or a manifest is wrong.
    """
    path = Path(source)
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        raise DataError(f"there is no folder or file '{shown(source)}'.{_did_you_mean(path)}")
    if not is_manifest(path):
        raise DataError(f"'{shown(source)}' is neither a folder nor a manifest; {_LAYOUTS}")
    return read_manifest(path)


def _did_you_mean(path: Path) -> str:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f" Even '{shown(folder)}' does not exist."
    close = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1)
    return f" Did you mean '{shown(path.with_name(close[0]))}'?" if close else ""


def _left_out(listing: Listing) -> str:
    if not listing.left_out:
        return ""
    reasons = Counter(reason for _, reason in listing.left_out)
    return " (left out: " + ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) + ")"
