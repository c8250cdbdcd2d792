"""Transfer across data sets: heads are measured on data sets with other classes than those of the shots."""

from __future__ import annotations

from clipadapter.bench.bundle import TestPart
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import NEW_CLASSES_TEXT, SEPARATE_PART_TEXT
from clipadapter.bench.protocols.transfer import Transfer
from clipadapter.bench.sources import Source, apply_prompts, extract_dataset
from clipadapter.bench.suite import Prompts, Suite
from clipadapter.classifier import FewShotClassifier


@register_protocol("cross-dataset")
class CrossDataset(Transfer):
    """The first data set gives the shots, the others have other classes."""

    test_kinds = {"given": SEPARATE_PART_TEXT, "new": NEW_CLASSES_TEXT}

    def build_part(self, suite: Suite, source: Source, model: FewShotClassifier, prompts: Prompts) -> TestPart:
        """As `Transfer.build_part`; the class text is that of the data set itself."""
        own, names = apply_prompts(suite, model, prompts, source), source.any_test.class_names
        return TestPart(extract_dataset(own, source.any_test, names), "new", own.encode_classes(names))
