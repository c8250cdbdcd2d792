"""One function that reads any data set: a folder, a manifest, or a set that is known by name."""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path

from clipadapter.data.dataset import Dataset, Listing
from clipadapter.data.folders import read_folder
from clipadapter.data.manifests import is_manifest, read_manifest
from clipadapter.errors import DataError
from clipadapter.files import MANIFEST_SUFFIXES, printable

_LAYOUTS = (
    "expected one folder a class, such as ROOT/cat/1.jpg and ROOT/dog/1.jpg, optionally under ROOT/train, "
    f"ROOT/val and ROOT/test, or a manifest ({', '.join(MANIFEST_SUFFIXES)}) with the columns path and label, or labels"
)


def load_dataset(source: str | Path, root: str | Path | None = None, *, one_class: bool = False) -> Dataset:
    """Read a folder of pictures, a manifest or a data set that is known by name; no picture is opened.

    Args:
        source: ``ROOT`` with ``CLASS/*.jpg`` or ``{train,val,test}/CLASS/*.jpg`` in it, a folder of pictures
            without classes (their labels are None), or a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file
            with the columns ``path``, ``label`` and optionally ``split``; or ``labels``, with ``|`` between them, if
            pictures have several. If there is no such path: the name of a
            benchmark data set such as ``dtd``, see ``clipadapter.data.sets``, or ``hf:NAME`` or ``hf:NAME@CONFIG``
            for one of Hugging Face's.
        root: folder that holds the benchmark data sets; by default what the environment variable CLIPADAPTER_DATA
            names, else ``data`` in the user's cache folder.
        one_class: True if pictures of one class will do, as for more shots of a fitted model.

    Raises:
        DataError: if there is no such path or name, no picture, only one class, a manifest is wrong, or files of
            a named set are missing.
        MissingExtraError: if a set of Hugging Face is asked for without the extra ``hf``.
    """
    listing = read_listing(source, root)
    dataset = listing.dataset
    if not dataset.samples:
        raise DataError(f"there are no pictures in '{printable(source)}'{_left_out(listing)}; {_LAYOUTS}")
    if len(dataset.class_names) == 1 and not one_class:
        one = f"'{printable(source)}' has only one class, '{dataset.class_names[0]}', but at least two are needed"
        raise DataError(f"{one}{_left_out(listing)}; {_LAYOUTS}")
    return dataset


def read_listing(source: str | Path, root: str | Path | None = None) -> Listing:
    """As `load_dataset`, with what was left out, and without complaint about no pictures or one class.

    Raises:
        DataError: if there is no such path or name, a manifest is wrong, or files of a named set are missing.
    """
    path = Path(source)
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        return _named(source, root)
    if not is_manifest(path):
        raise DataError(f"'{printable(source)}' is neither a folder nor a manifest; {_LAYOUTS}")
    return read_manifest(path)


def _named(source: str | Path, root: str | Path | None) -> Listing:
    from clipadapter.data.hugging_face import PREFIX, read_hugging_face
    from clipadapter.data.sets import find_set, list_sets

    name = source if isinstance(source, str) else source.as_posix()
    if name.startswith(PREFIX):
        return read_hugging_face(name.removeprefix(PREFIX))
    known = find_set(name)
    if known is not None:
        return Listing(known.load(root))
    raise DataError(f"there is no folder or file '{printable(source)}'.{_did_you_mean(Path(source), list_sets())}")


def _did_you_mean(path: Path, sets: list[str]) -> str:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f" Even '{printable(folder)}' does not exist."
    beside = [] if path.name == "" else [entry.name for entry in folder.iterdir()]
    named = difflib.get_close_matches(str(path), sets, n=1)
    close = difflib.get_close_matches(path.name, beside + named, n=1)
    if close and close[0] not in beside:
        return f" Did you mean the data set '{close[0]}'?"
    return f" Did you mean '{printable(path.with_name(close[0]))}'?" if close else ""


def _left_out(listing: Listing) -> str:
    if not listing.left_out:
        return ""
    reasons = Counter(reason for _, reason in listing.left_out)
    return " (left out: " + ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) + ")"
