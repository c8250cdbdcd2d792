"""Feature shards as the input of ``fit``, in place of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipadapter.cli.encoder_options import EncoderOptions
from clipadapter.cli.fit_options import HeadOptions, TrainingViewOptions
from clipadapter.errors import DataError, InputError
from clipadapter.utils.files import SHARDS_FILE

if TYPE_CHECKING:
    from clipadapter.classifier import FewShotClassifier
    from clipadapter.data import Dataset
    from clipadapter.features import FeatureTable


def open_shards(source: Path | str) -> ShardInput | None:
    """Open a folder of shards; None if the source has another form."""
    if isinstance(source, Path) and not (source / SHARDS_FILE).is_file():
        return None
    from clipadapter.features import open_feature_table

    return ShardInput(open_feature_table(source))


class ShardInput:
    """A folder of shards that a classifier is fitted to."""

    def __init__(self, shards: FeatureTable) -> None:
        self._shards = shards

    def list_dataset(self, split: str | None) -> Dataset:
        """The pictures of a split; without a name of "train", if there is one, else of all."""
        from clipadapter.data import Dataset, Sample

        shards = self._shards
        self._rows = shards.rows(split or ("train" if "train" in shards.splits else None))
        labels = shards.labels(self._rows)
        names = tuple(sorted(set(labels)))
        if len(names) < 2:
            raise DataError(f"'{shards.path}' has only one class, '{names[0]}', but at least two are needed")
        # Names of pictures are read for the shots only. One path for all keeps a row at a hundred bytes.
        place = Path(shards.name)
        samples = tuple(Sample(place, label, split or "all") for label in labels)
        return Dataset(shards.name, place, samples, names)

    def check_options(
        self,
        encoder: EncoderOptions,
        head: HeadOptions,
        views: TrainingViewOptions,
        unlabelled: Path | None,
        outliers: Path | None,
    ) -> EncoderOptions:
        """Refuse what needs pictures. Returns the options with the encoder of the shards, unless another is named."""
        used = {"--views": views.views != 1, "--unlabelled": unlabelled is not None, "--outliers": outliers is not None}
        names = [name for name, is_used in used.items() if is_used]
        if names:
            raise InputError(f"{names[0]} needs pictures, but '{self._shards.path}' holds features: leave it out")
        kind = head.create()
        if kind.needs_tower or kind.tunes_encoder:
            raise InputError(f"the head {head.name} trains through the encoder and needs pictures, not features")
        return replace(encoder, uris=(str(self._shards.encoder),)) if encoder.uris == ("auto",) else encoder

    def fit(self, model: FewShotClassifier, positions: Sequence[int], labels: list[str], names: Sequence[str]) -> None:
        """Fit a classifier, whose encoder gives the class text, to the shots at some positions in the data set."""
        shards, info = self._shards, model.encoder_.info
        if info.fingerprint != shards.fingerprint:
            raise InputError(
                f"the features of '{shards.path}' are of the encoder '{shards.encoder}' with weights other than "
                f"those of '{info.name}' on this machine: install the same weights and leave --encoder out"
            )
        support = replace(
            shards.take(self._rows[list(positions)], with_sources=True), y=tuple(labels), class_names=tuple(names)
        )
        model.fit_features(support, model.encode_classes(names)).drop_unused_blocks()
