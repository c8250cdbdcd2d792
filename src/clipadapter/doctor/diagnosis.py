"""From a data set to what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset
from clipadapter.doctor._quality import quality
from clipadapter.doctor.class_checks import names_not_understood, overlaps, same_texts, sizes
from clipadapter.doctor.duplicates import neighbours, pairs, twins
from clipadapter.doctor.findings import Diagnosis, Finding, Picture, ranked
from clipadapter.doctor.image_quality import looks
from clipadapter.doctor.label_errors import spared, suspects
from clipadapter.doctor.label_evidence import gather
from clipadapter.encoders import Encoder
from clipadapter.errors import InputError, require
from clipadapter.heads import TextFeatures


def diagnose(dataset: Dataset, model: FewShotClassifier, *, seed: int = 0, progress: bool = False) -> Diagnosis:
    """Look for what is wrong with labelled pictures; nothing is changed, moved or deleted.

    Pictures are compared by the classifier's features, which come from its store, and by what they look like. Labels of
    all parts are judged by heads that were fitted without the picture; no figure of a model comes from that.

    Args:
        dataset: all its parts are looked at, the first one's sizes.
        model: makes features and class text; it need not be fitted, and stays as it is.
        seed: of the folds.
        progress: show bars on stderr.

    Raises:
        DataError: if a picture has no label, or none can be read.
        MissingExtraError: if cleanlab or ImageHash is not installed.

    >>> from PIL import Image
    >>> import tempfile, pathlib
    >>> from clipadapter.data import load_dataset
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for part in ("train", "test"):
    ...     for colour in ("red", "blue"):
    ...         (root / part / colour).mkdir(parents=True)
    ...         Image.new("RGB", (40, 40), colour).save(root / part / colour / "1.png")
    >>> found = diagnose(load_dataset(root), FewShotClassifier(encoder="toy", cache=None))
    >>> [(finding.kind, finding.words) for finding in found.findings][0]
    ('leak', 'train/blue/1.png = test/blue/1.png (equal files)')
    """
    for module, what in (("imagehash", "looking for near duplicates"), ("cleanlab.filter", "looking for wrong labels")):
        require(module, "doctor", what)
    labels = dataset.labels
    features = model.extract_features(dataset.paths, labels, dataset.class_names, views=1)
    everything = [Picture.of(sample, dataset.root) for sample in dataset.samples]
    rows: list[int] = list(features.provenance["rows"])
    findings = _unreadable(everything, rows, features.provenance["skipped"])
    seen = looks([everything[row].path for row in rows], progress)
    kept = [i for i, look in enumerate(seen) if look is not None]  # a file may have gone since
    features = features.take(kept)
    there = [look for look in seen if look is not None]
    pictures = [everything[rows[i]] for i in kept]
    text = _class_text(model, dataset.class_names)
    near = neighbours(features.plain)
    evidence = gather(features, text, near, seed)
    findings += twins(pictures, pairs(there, near))
    suspected = list(suspects(pictures, evidence))
    likely = {finding.pictures[0] for finding in suspected if finding.kind == "wrong-label"}
    mixed = list(overlaps(pictures, evidence, likely))
    findings += [*spared(suspected, mixed), *mixed, *names_not_understood(pictures, evidence)]
    findings += sizes(pictures, dataset.class_names, dataset.splits)
    findings += same_texts(text) if text is not None else ()
    info = model.encoder_.info
    findings += quality(pictures, there, info.image_size, _squashes(model.encoder_))
    judged = int(evidence.judged.sum())
    counts = (len(dataset.samples), len(dataset.class_names))
    return Diagnosis(dataset.name, dataset.root, info.name, *counts, dataset.splits, judged, ranked(findings))


def _unreadable(pictures: Sequence[Picture], rows: Sequence[int], skipped: Sequence[tuple[str, str]]) -> list[Finding]:
    missing = sorted(set(range(len(pictures))) - set(rows))
    return [
        Finding("unreadable", 1.0, f"{pictures[row].name}: {reason}", (pictures[row],))
        for row, (_, reason) in zip(missing, skipped, strict=True)
    ]


def _class_text(model: FewShotClassifier, names: Sequence[str]) -> TextFeatures | None:
    """Class text; None of an encoder that can't read."""
    try:
        return model.encode_classes(names)
    except InputError:
        if model.encoder_.text_tower() is None and model.descriptions is None:
            return None
        raise


def _squashes(encoder: Encoder) -> bool:
    """Whether the encoder squeezes long pictures instead of cutting them."""
    tower = encoder.tower()
    return tower is not None and tower.pixels.resize == "squash"
