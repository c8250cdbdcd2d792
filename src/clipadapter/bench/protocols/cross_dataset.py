"""Transfer across data sets: heads are measured on data sets with other classes than those of the shots."""

from __future__ import annotations

from clipadapter.bench.bundle import TestPart
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import NEW_CLASSES_TEXT, SEPARATE_PART_TEXT, ProtocolInputs, TransferProtocol
from clipadapter.bench.sources import Source, extract_dataset


@register_protocol("cross-dataset")
class CrossDataset(TransferProtocol):
    """The first data set gives the shots, the others have other classes."""

    test_kinds = {"given": SEPARATE_PART_TEXT, "new": NEW_CLASSES_TEXT}

    def build_transfer_part(self, inputs: ProtocolInputs, source: Source) -> TestPart:
        """As `TransferProtocol.build_transfer_part`; the class text is that of the data set itself."""
        model, names = inputs.model_for(source), source.any_test.class_names
        return TestPart(extract_dataset(model, source.any_test, names), "new", model.encode_classes(names))
