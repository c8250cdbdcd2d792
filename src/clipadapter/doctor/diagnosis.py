"""The checks of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset
from clipadapter.doctor.findings import Diagnosis, Finding, Picture, rank_findings
from clipadapter.doctor.labels import (
    LabelEvidence,
    check_class_sizes,
    collect_label_evidence,
    downgrade_overlapping,
    find_class_overlaps,
    find_label_errors,
    find_same_texts,
    find_unknown_names,
)
from clipadapter.doctor.pictures import (
    check_image_quality,
    find_duplicate_pairs,
    group_duplicates,
    measure_images,
    nearest_neighbours,
)
from clipadapter.errors import require


def diagnose(dataset: Dataset, model: FewShotClassifier, *, seed: int = 0, progress: bool = False) -> Diagnosis:
    """Find faults in labelled pictures; nothing is changed, moved or deleted.

    Pictures are compared by the classifier's features, which its store keeps, and by their pixels. Labels of all splits
    are checked by heads that were fitted without the picture. These heads are not used to measure a model. Labels of
    the first split are checked by its own pictures, so that the doctor of a folder of shots and a report with test
    pictures suspect the same ones.

    Args:
        dataset: all its splits are checked; class sizes are those of the first split.
        model: extracts features and encodes class text. It need not be fitted, and is not changed.
        seed: of the folds.
        progress: show bars on stderr.

    Raises:
        DataError: if a picture has no label, or none can be read.
        MissingExtraError: if cleanlab or ImageHash is not installed.

    >>> from PIL import Image
    >>> import tempfile, pathlib
    >>> from clipadapter.data import load_dataset
    >>> root = pathlib.Path(tempfile.mkdtemp())
    >>> for split in ("train", "test"):
    ...     for colour in ("red", "blue"):
    ...         (root / split / colour).mkdir(parents=True)
    ...         Image.new("RGB", (40, 40), colour).save(root / split / colour / "1.png")
    >>> diagnosis = diagnose(load_dataset(root), FewShotClassifier(encoder="toy", cache=None))
    >>> diagnosis.findings[0].kind, diagnosis.findings[0].message
    ('leak', 'train/blue/1.png = test/blue/1.png (equal files)')
    """
    require("imagehash", "doctor", "the search for near duplicates")
    require("cleanlab.filter", "doctor", "the search for wrong labels")
    splits = dataset.splits
    by_path = sorted(dataset.samples, key=lambda each: (splits.index(each.split), str(each.label), str(each.path)))
    dataset = replace(dataset, samples=tuple(by_path))  # the folds must not depend on the order
    features = model.extract_features(dataset.paths, dataset.labels, dataset.class_names, views=1)
    all_pictures = [Picture.from_sample(sample, dataset.root) for sample in dataset.samples]
    rows: list[int] = list(features.provenance["rows"])
    was_read = set(rows)
    unreadable = [picture for i, picture in enumerate(all_pictures) if i not in was_read]
    findings = [
        Finding("unreadable", 1.0, f"{picture.name}: {reason}", (picture,))
        for picture, (_, reason) in zip(unreadable, features.provenance["skipped"], strict=True)
    ]
    measures_or_none = measure_images([all_pictures[row].path for row in rows], progress)
    # A file may be deleted after its features were extracted.
    measured = [i for i, measures in enumerate(measures_or_none) if measures is not None]
    features = features.take(measured)
    measures = [image for image in measures_or_none if image is not None]
    pictures = [all_pictures[rows[i]] for i in measured]
    encoded = model.encode_classes(dataset.class_names)
    text = encoded if encoded.has_text else None
    neighbours = nearest_neighbours(features.final)
    evidence = collect_label_evidence(features, text, neighbours, seed)
    findings += group_duplicates(pictures, find_duplicate_pairs(measures, neighbours))
    suspects, overlaps = _find_suspected_labels(pictures, evidence)
    shots = [i for i, picture in enumerate(pictures) if picture.split == splits[0]]
    if 0 < len(shots) < len(pictures):
        # Which shots are suspected must not depend on the test pictures that are given with them.
        part = features.take(shots)
        shot_evidence = collect_label_evidence(part, text, nearest_neighbours(part.final), seed)
        among_shots, _ = _find_suspected_labels([pictures[i] for i in shots], shot_evidence)
        suspects = [*among_shots, *(each for each in suspects if each.pictures[0].split != splits[0])]
    findings += [*suspects, *overlaps, *find_unknown_names(pictures, evidence)]
    findings += check_class_sizes(pictures, dataset.class_names, dataset.splits)
    findings += find_same_texts(text) if text is not None else ()
    info, tower = model.encoder_.info, model.encoder_.tower()
    squashes = tower is not None and tower.pixels.resize == "squash"  # long pictures, which others crop
    findings += check_image_quality(pictures, measures, info.image_size, squashes)
    return Diagnosis(
        dataset.name,
        dataset.root,
        info.name,
        len(dataset.samples),
        len(dataset.class_names),
        dataset.splits,
        int(evidence.is_held_out.sum()),
        rank_findings(findings),
    )


def _find_suspected_labels(pictures: Sequence[Picture], evidence: LabelEvidence) -> tuple[list[Finding], list[Finding]]:
    """Findings on labels, and on classes that overlap."""
    label_errors = list(find_label_errors(pictures, evidence))
    wrong_labels = {finding.pictures[0] for finding in label_errors if finding.kind == "wrong-label"}
    overlaps = list(find_class_overlaps(pictures, evidence, wrong_labels))
    return downgrade_overlapping(label_errors, overlaps), overlaps
