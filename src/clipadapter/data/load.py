"""Loading of any data set: a folder, a manifest, or a data set by name."""

from __future__ import annotations

import difflib
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

from clipadapter.data.dataset import SPLIT_ALIASES, Dataset, Listing
from clipadapter.data.folders import link_warnings, read_folder
from clipadapter.data.layout import PART_NAMES, find_layout_fault, find_similar_names
from clipadapter.data.manifests import is_manifest, read_manifest
from clipadapter.errors import DataError, DataWarning, LayoutError, require
from clipadapter.utils.files import MANIFEST_SUFFIXES, printable, suggest_path

SIMILAR_FOLDERS = (
    "folders that are taken for classes, but hold only folders of the same names; if these are the classes, give one "
    "of the folders"
)
SIMILAR_NAMES = (
    "classes whose names differ in case, spaces or plural only; move their pictures together if they are one"
)
SPLIT_NAMES = (
    "classes with the name of a part of the data; if they are none, move their folders out of the folder of the classes"
)
_LAYOUTS = (
    "expected one folder per class, such as ROOT/cat/1.jpg and ROOT/dog/1.jpg, optionally under ROOT/train, "
    f"ROOT/val and ROOT/test, or a table ({', '.join(MANIFEST_SUFFIXES)}) with the columns path and label, or labels"
)
_TEXTILE_CLASSES = {
    "global": "fabric with a global defect",
    "local": "fabric with a local defect",
    "nominal": "flawless fabric",
}


def load_dataset(source: str | Path, root: str | Path | None = None, *, one_class: bool = False) -> Dataset:
    """Load a folder of pictures, a manifest, or a data set by name. No picture is opened.

    Args:
        source: ``ROOT`` with ``CLASS/*.jpg`` or ``{train,val,test}/CLASS/*.jpg`` in it, a folder of pictures
            without classes (their labels are None), or a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file
            with the columns ``path``, ``label`` and optionally ``split``. Multi-label manifests have a column
            ``labels`` instead, with ``|`` between the labels. If there is no such path: the name of a benchmark data
            set such as ``dtd``, see ``clipadapter.data.sets``; or ``hf:NAME`` or ``hf:NAME@CONFIG`` for one of the
            Hugging Face hub.
        root: folder that holds the benchmark data sets; by default what the environment variable CLIPADAPTER_DATA
            names, else ``data`` in the user's cache folder.
        one_class: whether a single class is allowed, as for more shots of a fitted model.

    Raises:
        DataError: if there is no such path or name, there is no picture or only one class, a manifest is invalid, or
            files of a named set are missing.
        LayoutError: if the classes are one level deeper, as in the folder above ``shots`` and ``test``.
        MissingExtraError: if a Hugging Face data set is loaded without the extra ``hf``.
    """
    listing = read_listing(source, root)
    dataset = listing.dataset
    for warning in link_warnings(listing.left_out):
        warnings.warn(warning)
    if not dataset.samples:
        raise DataError(f"there are no pictures in '{printable(source)}'{_describe_left_out(listing)}; {_LAYOUTS}")
    has_one_class = len(dataset.class_names) == 1
    if not (has_one_class and one_class):
        check_layout(Path(source), dataset)
    if has_one_class and not one_class:
        one = f"'{printable(source)}' has only one class, '{dataset.class_names[0]}', but at least two are needed"
        raise DataError(f"{one}{_describe_left_out(listing)}; {_LAYOUTS}")
    return dataset


def check_layout(source: Path, dataset: Dataset) -> None:
    """Refuse folders that are hardly classes, and warn of others that may be none."""
    fault = find_layout_fault(source, dataset)
    if fault is not None and fault.is_certain:
        raise LayoutError(fault.text, source, fault.folders)
    if fault is not None:
        warnings.warn(DataWarning(SIMILAR_FOLDERS, tuple(map(printable, fault.folders))))
    parts = tuple(name for name in dataset.class_names if name.lower() in PART_NAMES) if source.is_dir() else ()
    if parts:
        warnings.warn(DataWarning(SPLIT_NAMES, tuple(map(printable, parts))))
    if similar := find_similar_names(dataset.class_names):
        warnings.warn(DataWarning(SIMILAR_NAMES, tuple(" and ".join(map(printable, names)) for names in similar)))


def load_labelled(
    source: str | Path, split: str | None = None, default: str | None = None, *, one_class: bool = False
) -> tuple[Dataset, tuple[str, ...]]:
    """Labelled pictures of a split, else of the split ``default`` if there is one, else of all; and all splits."""
    try:
        dataset = load_dataset(source, one_class=one_class)
    except LayoutError as error:
        if default not in SPLIT_ALIASES.values():
            raise
        first = sorted(error.folders, key=lambda folder: SPLIT_ALIASES.get(folder.name.lower()) != default)
        raise LayoutError(error.text, error.source, first) from error
    name = split or (default if default in dataset.splits else None)
    pictures = dataset.split(name) if name else dataset
    pictures.label_sets  # noqa: B018 - raises for pictures without a label
    return pictures, dataset.splits


def read_listing(source: str | Path, root: str | Path | None = None) -> Listing:
    """Load a data set as `load_dataset` does, with the files that were left out. Any number of classes is allowed."""
    path = Path(source)
    if path.is_dir():
        return read_folder(path)
    if not path.exists():
        return _read_named_set(source, root)
    if not is_manifest(path):
        raise DataError(f"'{printable(source)}' is neither a folder nor a table; {_LAYOUTS}")
    return read_manifest(path)


def _read_named_set(source: str | Path, root: str | Path | None) -> Listing:
    from clipadapter.data.hugging_face import PREFIX, read_hugging_face
    from clipadapter.data.sets import find_set, list_sets

    name = source if isinstance(source, str) else source.as_posix()
    if name.startswith(PREFIX):
        return read_hugging_face(name.removeprefix(PREFIX))
    known = find_set(name)
    if known is not None:
        return Listing(known.load(root))
    folder, close = Path(source).absolute().parent, difflib.get_close_matches(str(source), list_sets(), n=1)
    hint = suggest_path(Path(source))
    if not hint and not folder.is_dir():
        hint = f" Even '{printable(folder)}' does not exist."
    elif not hint and close:
        hint = f" Did you mean the data set '{close[0]}'?"
    raise DataError(f"there is no folder or file '{printable(source)}'.{hint}")


def _describe_left_out(listing: Listing) -> str:
    if not listing.left_out:
        return ""
    reasons = Counter(reason for _, reason in listing.left_out)
    return " (left out: " + ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) + ")"


def textiles() -> Dataset:
    """Load 2,000 simulated textile pictures in one split, with class names that suit prompts.

    1,000 are of nominal fabric, 500 have a local defect (a small spot) and 500 a global one (a change of the whole
    weave). They are in the package conformal-clip-data (MIT) of Megahed et al., few-shot CLIP for fabric inspection,
    https://arxiv.org/abs/2501.12596.

    Raises:
        MissingExtraError: if the extra ``demo`` is not installed.
    """
    package = require("conformal_clip_data", "demo", "The textile data set")
    return replace(load_dataset(Path(package.textile_simulated_root())), name="textiles").rename(_TEXTILE_CLASSES)
