"""Pictures to a comparison of heads: features once, the same drawn shots for every head, a table and a plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clipadapter.bench.bundle import Bundle, TestPart
from clipadapter.bench.plots import learning_curve
from clipadapter.bench.protocol import perform, run_all
from clipadapter.bench.report import table
from clipadapter.bench.run import Run, read_runs
from clipadapter.bench.score import check_labels
from clipadapter.bench.tuned import perform_tuned
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset, get_templates
from clipadapter.errors import DataError
from clipadapter.features import FeatureSet
from clipadapter.files import write_whole
from clipadapter.functional import unit
from clipadapter.heads import Head, TextFeatures
from clipadapter.metrics import metrics_shown

SAME = 1e-4
"""Unit features closer than this are of one picture: another batch changes a feature by 1e-5 at most."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` gives.

    Args:
        runs: the records.
        fresh: how many of them were made now; the others stood in the file of records.
        support: features that the shots were drawn from.
        test: features of the test part.
        text: class text.
        warnings: sentences about the data.
    """

    runs: list[Run]
    fresh: int
    support: FeatureSet
    test: FeatureSet
    text: TextFeatures
    warnings: list[str]

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of pictures that can't be read."""
        return [*self.support.provenance["skipped"], *self.test.provenance["skipped"]]

    def write(self, folder: Path, title: str) -> list[Path]:
        """Write ``table.md`` and ``accuracy.png``.

        Raises:
            InputError: if the folder can't be written.
        """
        tables = [table(self.runs, name, markdown=True) for name in metrics_shown("comparison", "single-label")]
        text = f"# {title}\n\n" + "\n".join(tables)
        page = write_whole(folder / "table.md", text)
        return [page, learning_curve(self.runs, folder / "accuracy.png", title)]


def compare(
    model: FewShotClassifier,
    train: Dataset,
    test: Dataset,
    heads: Mapping[str, Head],
    shots: Sequence[int],
    seeds: Sequence[int],
    *,
    records: Path | None = None,
    progress: bool = False,
) -> Comparison:
    """Compare heads on pictures; one that tunes the encoder tunes it on each draw, from plain pictures.

    Args:
        model: makes the features and the class text; it is not fitted.
        train: what the shots are drawn from; its classes are the classes.
        test: the test part.
        heads: by the name that tables show.
        shots: shots a class.
        seeds: of the draws.
        records: JSONL file; see `clipadapter.bench.few_shot`.
        progress: show a bar on stderr.

    Raises:
        InputError: if a test label is no class, or there is nothing to run.
        DataError: if a picture has no label, or no picture can be read.
    """
    names = train.class_names
    check_labels(test.labels, names)
    model.prepare(*heads.values())
    text = model.class_text(names)
    support, tested = features_of(model, train, names), features_of(model, test, names).mark_for_evaluation()
    before = _count(records)
    bundle = Bundle(support, text, {"test": TestPart(tested)})

    def make(bundle: Bundle, head: Head, runs: Sequence[Run]) -> list[Run]:
        if head.tunes_encoder:
            return perform_tuned(model, train, test, bundle, head, runs)
        return perform(bundle, head, runs)

    runs = run_all(bundle, heads, shots, seeds, make, records=records, progress=progress)
    fresh = len(runs) if records is None else _count(records) - before
    return Comparison(runs, fresh, support, tested, text, _warnings(support, tested, max(shots)))


def features_of(model: FewShotClassifier, dataset: Dataset, class_names: Sequence[str]) -> FeatureSet:
    """Plain features of a data set; their provenance names it and the templates.

    Raises:
        DataError: if a picture has no label, or none can be read.
    """
    found = model.features(dataset.paths, dataset.labels, class_names, views=1)
    more = {"data": dataset.name, "templates": get_templates(model.templates)}
    return replace(found, provenance={**found.provenance, **more})


def train_and_test(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """The parts train and test of a data set that is divided.

    Raises:
        DataError: if it is not.
    """
    if "train" not in dataset.splits or "test" not in dataset.splits:
        raise DataError(
            f"'{dataset.name}' is not divided into train and test; it has: {', '.join(dataset.splits)}. "
            "Give a second folder or manifest to test on, or put the classes under train/ and test/"
        )
    return dataset.split("train"), dataset.split("test")


def halves(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Two halves of a data set: in every class the first, third, fifth ... picture, and the others.

    >>> from clipadapter.data import Sample
    >>> samples = tuple(Sample(Path(f"{label}/{i}.jpg"), label, "all") for label in ("cat", "dog") for i in range(3))
    >>> first, second = halves(Dataset("pets", Path("."), samples, ("cat", "dog")))
    >>> [str(path) for path in second.paths]
    ['cat/1.jpg', 'dog/1.jpg']
    """
    seen: Counter[str] = Counter()
    parts: tuple[list[int], list[int]] = ([], [])
    for row, label in enumerate(dataset.labels):
        parts[seen[label] % 2].append(row)
        seen[label] += 1
    first, second = (replace(dataset, samples=tuple(dataset.samples[row] for row in rows)) for rows in parts)
    return first, second


def shared_rows(support: FeatureSet, test: FeatureSet) -> list[int]:
    """Test rows that are the same picture as a row of the support, by their features."""
    import torch

    shots = unit(torch.from_numpy(support.plain).double())
    rows: list[int] = []
    for start in range(0, len(test) if len(support) else 0, 1024):
        part = unit(torch.from_numpy(test.plain[start : start + 1024]).double())
        distance = (2 - 2 * (part @ shots.T).max(dim=1).values).clamp_min(0).sqrt()
        rows += [start + int(i) for i in torch.nonzero(distance < SAME).flatten()]
    return rows


def _count(records: Path | None) -> int:
    return len(read_runs(records)) if records is not None and records.is_file() else 0


def _warnings(support: FeatureSet, test: FeatureSet, most: int) -> list[str]:
    counts = Counter(support.y)
    small = [name for name in support.class_names if counts[name] < most]
    shared = shared_rows(support, test)
    found = []
    if small:
        found.append(
            f"{len(small)} of {len(support.class_names)} classes have fewer than {most} pictures to draw from and give "
            f"all they have, such as {small[0]} ({counts[small[0]]})"
        )
    if shared:
        found.append(f"{len(shared)} of {len(test)} test pictures are also among those that shots are drawn from")
    return found
