"""Distribution shift: other data sets show the classes of the shots in another way."""

from __future__ import annotations

from clipadapter.bench.bundle import TestPart
from clipadapter.bench.protocols import register_protocol
from clipadapter.bench.protocols.base import SEPARATE_PART_TEXT, ProtocolInputs, TransferProtocol
from clipadapter.bench.sources import Source, extract_dataset
from clipadapter.errors import DataError


@register_protocol("shift")
class Shift(TransferProtocol):
    """The first data set gives the shots, the others show its classes in another way."""

    test_kinds = {
        "given": SEPARATE_PART_TEXT,
        "shift": "shift: pictures from elsewhere that show classes of the shots, among which alone a head chooses",
    }

    def build_transfer_part(self, inputs: ProtocolInputs, source: Source) -> TestPart:
        """As `TransferProtocol.build_transfer_part`; the class text is that of the first data set."""
        first = inputs.sources[0]
        unknown = sorted(set(source.any_test.class_names) - set(first.train.class_names))
        if unknown:
            raise DataError(f"'{source.spec}' has classes that '{first.spec}' has not: {', '.join(unknown[:5])}")
        return TestPart(extract_dataset(inputs.model, source.any_test, source.any_test.class_names), "shift")
