"""What the doctor says of the shots and the test pictures of a model."""

from __future__ import annotations

import os
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset, Sample
from clipadapter.doctor import Diagnosis, diagnose
from clipadapter.errors import ClipAdapterError
from clipadapter.report.pictures import Rows

OF_SHOTS = ("no-shots", "few-shots", "imbalance")
"""Kinds that count the shots, and say nothing where their files are gone."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What was found, or why nothing was looked for.

    Args:
        diagnosis: of the shots whose files are still there (part train) and the test pictures (part test).
        why: there is none.
        gone: shots whose files are not there.
    """

    diagnosis: Diagnosis | None = None
    why: str = ""
    gone: int = 0

    @property
    def counts(self) -> dict[str, int] | None:
        """How many there are of each kind; None if nothing was looked for."""
        return None if self.diagnosis is None else self.diagnosis.counts


def look(model: FewShotClassifier, rows: Rows, seed: int = 0, progress: bool = False) -> Findings:
    """Have the doctor look at shots and test pictures together, which shows a picture that is in both.

    Args:
        model: fitted; it stays as it is.
        rows: the pictures.
        seed: of the doctor's folds.
        progress: show bars on stderr.
    """
    names = rows.class_names
    parts = (("train", rows.shots), ("test", rows.test))
    samples = tuple(
        Sample(one.path.absolute(), names[one.label], part)
        for part, items in parts
        for one in items
        if one.path is not None and one.path.is_file()
    )
    there = sum(sample.split == "train" for sample in samples)
    if not samples:
        return Findings(why="the pictures are not there any more")
    root = Path(os.path.commonpath([sample.path.parent for sample in samples]))
    # A copy: class text is made anew, from the model's own prompts, and would be noted on the model.
    other = copy(model)
    other.descriptions = model.prompts_
    try:
        found = diagnose(Dataset("shots and test", root, samples, names), other, seed=seed, progress=progress)
    except ClipAdapterError as error:  # an extra that is missing, or pictures that went away: the figures stand
        return Findings(why=str(error))
    if there < len(rows.shots) or not there:
        kept = tuple(one for one in found.findings if one.kind not in OF_SHOTS)
        found = replace(found, findings=kept)
    return Findings(found, gone=len(rows.shots) - there)
