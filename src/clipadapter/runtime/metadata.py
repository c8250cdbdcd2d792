"""The metadata of an exported file: JSON under the key ``clipadapter``."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import ArtifactError, ClipAdapterError
from clipadapter.runtime.engines.formats import INPUT_NAMES, PRECISIONS, input_names
from clipadapter.uncertainty import Uncertainty
from clipadapter.uncertainty.ood import MARK_RATE
from clipadapter.utils.blocks import Blocks, as_blocks
from clipadapter.utils.pixels import PixelSpec, different_squares

FORMAT = 1
MAX_INPUTS = 64
REJECTION_RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Rates of rejection whose thresholds are written out, for readers without this package."""
MAX_METADATA_CHARACTERS = 64 << 20
DESCRIPTIONS = ("encoder", "head", "provenance", "parity")  # fields with facts that are only shown
ARRAY_DTYPES = ("<f8", "<f4", "<i8", "<i4", "|b1")
DAMAGE_ERRORS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ClipAdapterError)
"""What reading altered metadata may raise."""


@dataclass(frozen=True, eq=False)
class ExportMetadata:
    """Metadata of an exported file.

    Args:
        class_names: in the order of the logits.
        inputs: how a picture becomes the square of each input of the graph.
        uncertainty: as `Uncertainty.without_arrays` returns it; the graph has the other arrays.
        input: "uint8" for squares (n, s, s, 3), values 0 .. 255; "float" for normalised pixels (n, 3, s, s).
        precision: of the image tower, "fp32" or "int8".
        encoder: its name, fingerprint, licence and logit scale.
        head: its name and parameters.
        provenance: shots, versions, time.
        parity: figures of the comparison with the model.
        blocks: name and width of each block of the features, ``final`` first; empty if it is the only one.

    >>> pixels = PixelSpec(8, (0.5,) * 3, (0.5,) * 3)
    >>> ExportMetadata.from_json(ExportMetadata(("cat", "dog"), (pixels,), Uncertainty()).to_json()).class_names
    ('cat', 'dog')
    """

    class_names: tuple[str, ...]
    inputs: tuple[PixelSpec, ...]
    uncertainty: Uncertainty
    input: str = "uint8"
    precision: str = "fp32"
    encoder: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    blocks: Blocks = ()

    def to_json(self) -> str:
        """Serialise; `from_json` is the inverse.

        ``reject`` is for readers without this package: it maps rates, the share of pictures of the classes that is
        rejected, to thresholds of the output ``ood_scores``.
        """
        state, arrays = self.uncertainty.state()
        rejector = self.uncertainty.rejector
        thresholds = {}
        if rejector is not None:
            thresholds = {str(rate): rejector.threshold(rate).value for rate in REJECTION_RATES}
            thresholds[str(MARK_RATE)] = rejector.mark_threshold
        multilabel = self.uncertainty.multilabel
        names = input_names(self.input, [spec.size for spec in self.inputs])
        inputs = [{"name": name, "pixels": spec.to_dict()} for name, spec in zip(names, self.inputs, strict=True)]
        return json.dumps(
            {
                "format": FORMAT,
                "class_names": list(self.class_names),
                "task": "single-label" if multilabel is None else "multilabel",
                "inputs": inputs,
                **({"blocks": [list(block) for block in self.blocks]} if self.blocks else {}),
                "input": self.input,
                "precision": self.precision,
                "reject": {rate: value for rate, value in thresholds.items() if math.isfinite(value)},
                "thresholds": None if multilabel is None else multilabel.thresholds.tolist(),
                **{key: dict(getattr(self, key)) for key in DESCRIPTIONS},
                "checksum": "sha256",
                "uncertainty": state,
                "uncertainty_arrays": {name: _pack(array) for name, array in arrays.items()},
            },
            allow_nan=False,
            default=repr,  # parameters of a head that JSON has no values for
        )

    @classmethod
    def from_json(cls, text: str) -> ExportMetadata:
        """Parse and check.

        Raises:
            ArtifactError: if the text is damaged, not of this package, or of another format.
        """
        if len(text) > MAX_METADATA_CHARACTERS:
            raise ArtifactError(
                f"the metadata of the file have {len(text) >> 20} million characters: 'clipadapter export' writes fewer"
            )
        try:
            raw = json.loads(text)
            _check_format(raw["format"])
            names = _check_names(raw["class_names"])
            arrays = {name: _unpack(name, value) for name, value in raw["uncertainty_arrays"].items()}
            inputs = tuple(_parse_pixels(each["pixels"]) for each in raw["inputs"])
            if not 0 < len(inputs) <= MAX_INPUTS or len(different_squares(inputs)[0]) < len(inputs):
                raise ValueError(f"its inputs are {[spec.size for spec in inputs]}")
            metadata = cls(
                names,
                inputs,
                Uncertainty.from_state(raw["uncertainty"], arrays, len(names), arrays_removed=True),
                raw["input"],
                raw["precision"],
                blocks=as_blocks(raw["blocks"]) if raw.get("blocks") else (),
                **{key: dict(raw[key]) for key in DESCRIPTIONS},
            )
            conformal = metadata.uncertainty.conformal
            if conformal is not None and conformal.method == "cv+":
                raise ValueError("sets by cv+ need the heads of all folds")
        except ArtifactError:
            raise
        except DAMAGE_ERRORS as error:
            raise ArtifactError(f"the metadata of the file are damaged ({error!r}): export the model again") from error
        # A tuple: a value that can't be hashed must not raise another error.
        if metadata.input not in tuple(INPUT_NAMES) or metadata.precision not in PRECISIONS:
            raise ArtifactError(
                f"the file has input {metadata.input!r} and precision {metadata.precision!r}: update clipadapter"
            )
        return metadata


def _check_format(number: Any) -> None:
    if type(number) is not int:
        raise ValueError(f"its format is {number!r}")
    if number != FORMAT:
        raise ArtifactError(
            f"the file has format {number}, this version reads {FORMAT}: update clipadapter, or export the model again"
        )


def _check_names(names: Any) -> tuple[str, ...]:
    are_texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not are_texts or not 1 < len(names) == len(set(names)):
        raise ValueError("class names must be two or more different texts")
    return tuple(names)


def _parse_pixels(facts: Any) -> PixelSpec:
    pixels = PixelSpec.from_dict(facts)
    numbers = (*pixels.mean, *pixels.std)
    if type(pixels.size) is not int or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise ValueError(f"its pixels are {pixels}")
    return pixels


def _pack(array: NDArray[Any]) -> dict[str, Any]:
    data = base64.b64encode(array.tobytes()).decode("ascii")
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def _unpack(name: str, value: Mapping[str, Any]) -> NDArray[Any]:
    dtype, shape = value["dtype"], value["shape"]
    if dtype not in ARRAY_DTYPES or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ValueError(f"the array {name!r} is of {dtype} {shape}")
    data = base64.b64decode(value["data"], validate=True)
    if len(data) != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ValueError(f"the array {name!r} has {len(data)} bytes, which is not {shape} of {dtype}")
    array = np.frombuffer(data, dtype).reshape(shape)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"the array {name!r} has values that are not finite")
    return array
