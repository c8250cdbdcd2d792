"""What an exported file says of itself, as JSON in its metadata under the key ``clipadapter``."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipadapter.errors import ArtifactError, ClipAdapterError
from clipadapter.pixels import PixelSpec
from clipadapter.runtime._checksum import ALGORITHM
from clipadapter.uncertainty import Uncertainty

KEY = "clipadapter"
FORMAT = 1
INPUTS = {"uint8": "squares", "float": "pixels"}
"""What the graph's input is called, by its kind."""
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Rates of rejection whose thresholds are written out, for readers without this package."""
MAX_CHARACTERS = 64 << 20
DTYPES = ("<f8", "<f4", "<i8", "<i4", "|b1")
DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ClipAdapterError)
"""What comes of facts that are other than they were written."""


@dataclass(frozen=True, eq=False)
class About:
    """Facts of an exported file.

    Args:
        class_names: in the order of the logits.
        pixels: how a picture becomes the square that the graph takes.
        uncertainty: as `Uncertainty.light` leaves it; the graph has the rest.
        input: "uint8", plain squares (n, s, s, 3); or "float", normalised pixels (n, 3, s, s).
        precision: of the image tower, "fp32" or "int8".
        encoder: its name, fingerprint, licence and logit scale.
        head: its name and parameters.
        provenance: shots, versions, time.
        gate: how near the file's answers are to the model's.
        checksum: "sha256" if the file ends with its SHA-256; "" if it was exported without one.

    >>> pixels = PixelSpec(8, (0.5,) * 3, (0.5,) * 3)
    >>> About.from_json(About(("cat", "dog"), pixels, Uncertainty()).to_json()).class_names
    ('cat', 'dog')
    """

    class_names: tuple[str, ...]
    pixels: PixelSpec
    uncertainty: Uncertainty
    input: str = "uint8"
    precision: str = "fp32"
    encoder: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)
    checksum: str = ""

    @property
    def task(self) -> str:
        """Either "single-label", or "multilabel" where a picture may have several labels."""
        return "single-label" if self.uncertainty.multilabel is None else "multilabel"

    def to_json(self) -> str:
        """As text; `from_json` is the way back.

        ``reject`` in it is for readers without this package: the share of pictures of the classes that is called none
        of them, and the value of ``strangeness`` above which it is.
        """
        facts, arrays = self.uncertainty.state()
        rejector = self.uncertainty.rejector
        rates = {} if rejector is None else {str(rate): rejector.threshold(rate).value for rate in RATES}
        several = self.uncertainty.multilabel
        return json.dumps(
            {
                "format": FORMAT,
                "class_names": list(self.class_names),
                "task": self.task,
                "pixels": self.pixels.to_dict(),
                "input": self.input,
                "precision": self.precision,
                "reject": {rate: value for rate, value in rates.items() if math.isfinite(value)},
                "thresholds": None if several is None else several.thresholds.tolist(),
                "encoder": dict(self.encoder),
                "head": dict(self.head),
                "provenance": dict(self.provenance),
                "gate": dict(self.gate),
                "checksum": self.checksum,
                "trust": facts,
                "trust_arrays": {name: _packed(array) for name, array in arrays.items()},
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> About:
        """The facts that the text gives, checked.

        Raises:
            ArtifactError: if it is no such text, is damaged, or of a later format.
        """
        if len(text) > MAX_CHARACTERS:
            raise ArtifactError(f"the file's description has {len(text) >> 20} million characters: it is none of ours")
        try:
            raw = json.loads(text)
            _check_format(raw["format"])
            names = tuple(_names(raw["class_names"]))
            arrays = {name: _unpacked(name, value) for name, value in raw["trust_arrays"].items()}
            uncertainty = Uncertainty.from_state(raw["trust"], arrays, len(names), light=True)
            if uncertainty.conformal is not None and uncertainty.conformal.method == "cv+":
                raise ValueError("its sets need the heads of single folds")
            about = cls(names, _pixels(raw["pixels"]), uncertainty, raw["input"], raw["precision"])
            given = {name: dict(raw[name]) for name in ("encoder", "head", "provenance", "gate")}
            checksum = raw.get("checksum", "")
        except ArtifactError:
            raise
        except DAMAGE as error:
            raise ArtifactError(f"the file's description is damaged ({error!r}): export the model again") from error
        if about.input not in tuple(INPUTS) or about.precision not in ("fp32", "int8"):
            raise ArtifactError(
                f"the file has input {about.input!r} and precision {about.precision!r}: update clipadapter"
            )
        if checksum not in ("", ALGORITHM):
            raise ArtifactError(f"the file has a checksum by {checksum!r}: update clipadapter")
        return cls(names, about.pixels, uncertainty, about.input, about.precision, **given, checksum=checksum)


def _check_format(number: Any) -> None:
    if type(number) is not int or number < 1:
        raise ValueError(f"its format is {number!r}")
    if number > FORMAT:
        raise ArtifactError(f"the file has format {number}, this version reads up to {FORMAT}: update clipadapter")


def _names(value: Any) -> list[str]:
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(name, str) for name in value):
        raise ValueError("class names must be two texts or more")
    if len(set(value)) < len(value):
        raise ValueError("two classes have the same name")
    return value


def _pixels(facts: Any) -> PixelSpec:
    found = PixelSpec.from_dict(facts)
    numbers = (*found.mean, *found.std)
    if type(found.size) is not int or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise ValueError(f"its pixels are {found}")
    return found


def _packed(array: NDArray[Any]) -> dict[str, Any]:
    plain = np.ascontiguousarray(array)
    plain = plain.astype(plain.dtype.newbyteorder("<")) if plain.dtype.byteorder == ">" else plain
    if plain.dtype.str not in DTYPES:
        raise TypeError(f"an array of {plain.dtype} can't be written")
    data = base64.b64encode(plain.tobytes()).decode("ascii")
    return {"dtype": plain.dtype.str, "shape": list(plain.shape), "data": data}


def _unpacked(name: str, value: Mapping[str, Any]) -> NDArray[Any]:
    dtype, shape = value["dtype"], value["shape"]
    if dtype not in DTYPES or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise ArtifactError(f"the file's array {name!r} is of {dtype} {shape}: export the model again")
    try:
        data = base64.b64decode(value["data"], validate=True)
    except (binascii.Error, TypeError) as error:
        raise ArtifactError(f"the file's array {name!r} is damaged: export the model again") from error
    if len(data) != math.prod(shape) * np.dtype(dtype).itemsize:
        raise ArtifactError(f"the file's array {name!r} is {len(data)} bytes, but should be {shape} of {dtype}")
    array = np.frombuffer(data, dtype).reshape(shape)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ArtifactError(f"the file's array {name!r} has values that are not finite: export the model again")
    return array
