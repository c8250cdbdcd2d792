"""Cost-sensitive decisions: predict the class with the least expected cost, not the most probable class.

This is the Bayes decision (Elkan, "The foundations of cost-sensitive learning", IJCAI 2001). It is as good as the
calibration of the probabilities. With two classes it is a threshold: a class is predicted if its probability is at
least ``cost of its false alarm / (cost of its false alarm + cost of missing it)``.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipadapter.errors import DataError, InputError, brief
from clipadapter.utils.parsing import read_text
from clipadapter.utils.registry import unknown

Array = NDArray[Any]

DEFAULT_WEIGHT = 10.0  # cost of named errors without a weight of their own
PART_SEPARATOR = re.compile(r",\s*(?=(?:false|missed)\s)", re.IGNORECASE)
"""Separator of the parts in `parse_costs`. Class names can contain commas too."""


def read_costs(path: str | Path, class_names: Sequence[str]) -> Array:
    """Read the cost of each error from a CSV file.

    The first line has the predicted classes, the first column the true ones, in any order. The corner is ignored::

        true,defect,nominal
        defect,0,10
        nominal,1,0

    Args:
        path: of the file, UTF-8.
        class_names: the c classes of the model, in order.

    Returns:
        (c, c) float64: rows are true classes, columns are predicted classes.

    Raises:
        DataError: if the file can't be read, a class is missing, unknown or named twice, a cost is not a number of at
            least 0, or an error is cheaper than the correct prediction.
    """
    try:
        lines = io.StringIO(read_text(Path(path)), newline="")
        rows = [row for row in csv.reader(lines, strict=True) if any(field.strip() for field in row)]
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file: {error}") from error
    if not rows:
        raise DataError(f"{path} is empty: the first line must name the classes, the first column too")
    header, body = [name.strip() for name in rows[0][1:]], rows[1:]
    _check_names(path, "first line", header, class_names)
    _check_names(path, "first column", [row[0].strip() for row in body], class_names)
    position = {name: i for i, name in enumerate(class_names)}
    costs = np.zeros((len(class_names), len(class_names)))
    for row in body:
        true = row[0].strip()
        if len(row) != len(rows[0]):
            raise DataError(f"{path}: the row of {brief(true)} has {len(row) - 1} costs for {len(header)} classes")
        for answer, text in zip(header, row[1:], strict=True):
            cost = costs[position[true], position[answer]] = _parse_number(text)
            if not cost >= 0:
                actual = repr(text.strip()) if text.strip() else "nothing"
                raise DataError(
                    f"{path}: true {brief(true)}, answer {brief(answer)}: a cost must be a number of at least 0, got "
                    f"{actual}"
                )
    try:
        return check_costs(costs, class_names)
    except InputError as error:
        raise DataError(f"{path}: {error}") from error


def parse_costs(text: str, class_names: Sequence[str]) -> Array:
    """Read the cost of each error from a text: named errors cost 10, others 1, correct predictions nothing.

    "false NAME" are predictions of this class for pictures of others. "missed NAME" are predictions of others for
    pictures of this class. Commas separate the parts, and a part can have its own weight: ``"missed crack=50, false
    nominal"``. An error that two parts name has the higher of both costs.

    Args:
        text: the expensive errors.
        class_names: the c classes of the model, in order.

    Returns:
        (c, c) float64: rows are true classes, columns are predicted classes.

    Raises:
        InputError: if a part is not of this form or its weight is below 1.
        UnknownNameError: if there is no such class.

    >>> parse_costs("false nominal", ["defect", "nominal"])
    array([[ 0., 10.],
           [ 1.,  0.]])
    """
    costs = 1 - np.eye(len(class_names))
    for part in PART_SEPARATOR.split(text):
        kind, position, cost = _parse_part(part, class_names)
        cells = costs[:, position] if kind == "false" else costs[position]
        np.maximum(cells, cost, out=cells, where=np.arange(len(cells)) != position)
    return costs


def decide(probabilities: ArrayLike, costs: ArrayLike) -> Array:
    """Positions (m,) of the classes with the least expected cost; among equal ones the most probable.

    Args:
        probabilities: (m, c), calibrated.
        costs: (c, c), rows are true classes, columns are predicted classes.

    Raises:
        InputError: if the shapes don't match or a cost is invalid.

    >>> decide([[0.25, 0.75], [0.05, 0.95]], parse_costs("false nominal", ["defect", "nominal"])).tolist()
    [0, 1]
    """
    p, matrix = np.asarray(probabilities, dtype=np.float64), check_costs(costs)
    if p.ndim != 2 or p.shape[1] != len(matrix):
        raise InputError(f"probabilities must be (m, {len(matrix)}) for costs of {len(matrix)} classes, got {p.shape}")
    expected = p @ matrix
    cheapest = expected <= expected.min(axis=1, keepdims=True)
    return np.asarray(np.where(cheapest, p, -1).argmax(axis=1))


def check_costs(costs: ArrayLike, class_names: Sequence[str] | None = None) -> Array:
    """Check costs, and return them as (c, c) float64: rows are true classes, columns are predicted classes."""
    matrix = np.asarray(costs, dtype=np.float64)
    c = matrix.shape[0] if matrix.ndim and class_names is None else len(class_names or ())
    if matrix.shape != (c, c) or not c:
        raise InputError(f"costs must be a square matrix, one row and column per class ({c}), got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise InputError("costs must be finite numbers")
    if (matrix < 0).any():
        raise InputError("costs must be at least 0: for gains, give the loss against the best prediction")
    names = [str(i) for i in range(c)] if class_names is None else class_names
    for k in range(c):
        cheapest = int(matrix[k].argmin())
        if matrix[k, k] > matrix[k, cheapest]:
            raise InputError(
                f"for pictures of {brief(names[k])} the correct prediction costs {matrix[k, k]:g}, but "
                f"{brief(names[cheapest])} only {matrix[k, cheapest]:g}: rows are true classes, "
                "columns are predictions, and the correct one must be the cheapest"
            )
    return matrix


def _check_names(path: str | Path, where: str, names: Sequence[str], class_names: Sequence[str]) -> None:
    """Check that names are all classes of the model, each once."""
    for problem, names_in_error in (
        ("names classes that the model does not have", [name for name in names if name not in class_names]),
        ("repeats classes", sorted({name for name in names if names.count(name) > 1})),
        ("lacks classes", [name for name in class_names if name not in names]),
    ):
        if names_in_error:
            ellipsis = ", ..." if len(names_in_error) > 3 else ""
            raise DataError(
                f"{path}: the {where} {problem}: {', '.join(map(repr, names_in_error[:3]))}{ellipsis}. It must "
                f"name each of the model's {len(class_names)} classes once, separated by commas"
            )


def _parse_part(text: str, class_names: Sequence[str]) -> tuple[str, int, float]:
    """Whether "false" or "missed", the class's position, and the cost."""
    text = text.strip()
    kind, _, name = text.partition(" ")
    kind, name, weight = kind.lower(), name.strip(), DEFAULT_WEIGHT
    if kind not in ("false", "missed") or not name:
        raise InputError(f"{brief(text)} is neither 'false CLASS' nor 'missed CLASS', such as 'missed defect=20'")
    position = _find_class(name, class_names)
    if position is None and "=" in name:
        name, _, weight_text = name.rpartition("=")
        position, weight = _find_class(name.strip(), class_names), _parse_number(weight_text)
    if position is None:
        raise unknown("class", name.strip(), list(class_names))
    if not weight >= 1:
        raise InputError(f"the weight in {brief(text)} must be a number of at least 1, the cost of other errors")
    return kind, position, weight


def _parse_number(text: str) -> float:
    """NaN if it is no finite number."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def _find_class(name: str, class_names: Sequence[str]) -> int | None:
    """Position of a class by its name. The case of letters is ignored if only one class matches then."""
    if name in class_names:
        return list(class_names).index(name)
    matches = [i for i, other in enumerate(class_names) if other.casefold() == name.casefold()]
    return matches[0] if len(matches) == 1 else None
