"""Errors that cost unequally: the answer with the least expected cost instead of the most probable class.

The rule is Bayes' (Elkan, "The foundations of cost-sensitive learning", IJCAI 2001): it is as good as the probabilities
are calibrated. With two classes it moves the threshold: a class is answered from the probability
``cost of its false alarm / (cost of its false alarm + cost of missing it)`` on.
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

from clipadapter.errors import DataError, InputError
from clipadapter.parsing import read_text
from clipadapter.registry import unknown

Array = NDArray[Any]

PARTS = re.compile(r",\s*(?=(?:false|missed)\s)", re.IGNORECASE)
"""What divides the parts of `costs_for`: names of classes may have commas themselves."""


def read_costs(path: str | Path, class_names: Sequence[str]) -> Array:
    """What each error costs, from a CSV file.

    The first line has the answered classes, the first column the true ones, in any order; the corner may say anything::

        true,defect,nominal
        defect,0,10
        nominal,1,0

    Args:
        path: of the file, UTF-8.
        class_names: c of the model, in order.

    Returns:
        (c, c) float64: row the true class, column the answer.

    Raises:
        DataError: if the file can't be read, a class is missing, unknown or named twice, a cost is not a number of at
            least 0, or an error is cheaper than the right answer.
    """
    rows = _rows(Path(path))
    header, body = [name.strip() for name in rows[0][1:]], rows[1:]
    _check_names(path, "first line", header, class_names)
    _check_names(path, "first column", [row[0].strip() for row in body], class_names)
    position = {name: i for i, name in enumerate(class_names)}
    costs = np.zeros((len(class_names), len(class_names)))
    for row in body:
        true = row[0].strip()
        if len(row) != len(rows[0]):
            raise DataError(f"{path}: the row of {true!r} has {len(row) - 1} costs for {len(header)} classes")
        for answer, text in zip(header, row[1:], strict=True):
            costs[position[true], position[answer]] = _cost(path, true, answer, text)
    try:
        return checked_costs(costs, class_names)
    except InputError as error:
        raise DataError(f"{path}: {error}") from error


def costs_for(text: str, class_names: Sequence[str], weight: float = 10.0) -> Array:
    """What each error costs, from words: some cost ``weight``, all others 1, right answers nothing.

    "false NAME" are answers of this class though it is another; "missed NAME" are other answers though it is this
    class. Several are divided by commas, and each may say its own weight: ``"missed crack=50, false nominal"``. An
    error that two of them name costs the more of both.

    Args:
        text: which errors are dear.
        class_names: c of the model, in order.
        weight: cost of errors whose weight is not said.

    Returns:
        (c, c) float64: row the true class, column the answer.

    Raises:
        InputError: if a part is not of this form or its weight is below 1.
        UnknownNameError: if there is no such class.

    >>> costs_for("false nominal", ["defect", "nominal"])
    array([[ 0., 10.],
           [ 1.,  0.]])
    """
    costs = 1 - np.eye(len(class_names))
    for part in PARTS.split(text):
        kind, k, cost = _part(part, class_names, weight)
        line = costs[:, k] if kind == "false" else costs[k]
        np.maximum(line, cost, out=line, where=np.arange(len(line)) != k)
    return costs


def expected_cost(probabilities: ArrayLike, costs: ArrayLike) -> Array:
    """What each answer costs on average: (m, c) calibrated probabilities and (c, c) costs to (m, c).

    Raises:
        InputError: if the shapes don't go together or a cost can't be one.

    >>> expected_cost([[0.25, 0.75]], [[0, 10], [1, 0]])
    array([[0.75, 2.5 ]])
    """
    p, matrix = np.asarray(probabilities, dtype=np.float64), checked_costs(costs)
    if p.ndim != 2 or p.shape[1] != len(matrix):
        raise InputError(f"probabilities must be (m, {len(matrix)}) for costs of {len(matrix)} classes, got {p.shape}")
    return np.asarray(p @ matrix)


def decide(probabilities: ArrayLike, costs: ArrayLike) -> Array:
    """Positions (m,) of the answers with the least expected cost; of equal ones the most probable.

    Args:
        probabilities: (m, c), calibrated.
        costs: (c, c), row the true class, column the answer.

    Raises:
        InputError: as `expected_cost`.

    >>> decide([[0.25, 0.75], [0.05, 0.95]], costs_for("false nominal", ["defect", "nominal"])).tolist()
    [0, 1]
    """
    expected = expected_cost(probabilities, costs)
    cheapest = expected <= expected.min(axis=1, keepdims=True)
    return np.asarray(np.where(cheapest, np.asarray(probabilities, dtype=np.float64), -1).argmax(axis=1))


def checked_costs(costs: ArrayLike, class_names: Sequence[str] | None = None) -> Array:
    """Costs as (c, c) float64.

    Args:
        costs: row the true class, column the answer.
        class_names: c of the model, for the words of an error.

    Raises:
        InputError: if they are not square, negative, not finite, or an error is cheaper than the right answer.
    """
    matrix = np.asarray(costs, dtype=np.float64)
    c = matrix.shape[0] if matrix.ndim and class_names is None else len(class_names or ())
    if matrix.shape != (c, c) or not c:
        raise InputError(f"costs must be a square, a row and a column a class ({c}), got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise InputError("costs must be finite numbers")
    if (matrix < 0).any():
        raise InputError("costs must be at least 0: for gains, give what is lost against the best answer")
    names = [str(i) for i in range(c)] if class_names is None else class_names
    for k in range(c):
        cheap = int(matrix[k].argmin())
        if matrix[k, k] > matrix[k, cheap]:
            raise InputError(
                f"for pictures of {names[k]!r} the right answer costs {matrix[k, k]:g}, but {names[cheap]!r} only "
                f"{matrix[k, cheap]:g}: rows are true classes, columns answers, and the right answer is the cheapest"
            )
    return matrix


def _rows(path: Path) -> list[list[str]]:
    try:
        lines = io.StringIO(read_text(path), newline="")
        rows = [row for row in csv.reader(lines, strict=True) if any(field.strip() for field in row)]
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file: {error}") from error
    if not rows:
        raise DataError(f"{path} is empty: the first line must name the classes, the first column too")
    return rows


def _check_names(path: str | Path, where: str, names: Sequence[str], class_names: Sequence[str]) -> None:
    """All classes of the model, each once."""
    for problem, found in (
        ("names classes that the model has not", [name for name in names if name not in class_names]),
        ("names classes twice", sorted({name for name in names if names.count(name) > 1})),
        ("lacks classes", [name for name in class_names if name not in names]),
    ):
        if found:
            more = ", ..." if len(found) > 3 else ""
            raise DataError(
                f"{path}: the {where} {problem}: {', '.join(map(repr, found[:3]))}{more}. It must name each of the "
                f"model's {len(class_names)} classes once, separated by commas"
            )


def _cost(path: str | Path, true: str, answer: str, text: str) -> float:
    try:
        cost = float(text)
    except ValueError:
        cost = math.nan
    if not math.isfinite(cost) or cost < 0:
        came = repr(text.strip()) if text.strip() else "nothing"
        raise DataError(f"{path}: true {true!r}, answer {answer!r}: a cost is a number of at least 0, got {came}")
    return cost


def _part(text: str, class_names: Sequence[str], weight: float) -> tuple[str, int, float]:
    """Whether "false" or "missed", the class's position, and the cost."""
    kind, _, name = text.strip().partition(" ")
    kind, name = kind.lower(), name.strip()
    if kind not in ("false", "missed") or not name:
        raise InputError(f"{text.strip()!r} is neither 'false CLASS' nor 'missed CLASS', such as 'missed defect=20'")
    k = _position(name, class_names)
    if k is None and "=" in name:
        name, _, said = name.rpartition("=")
        k, weight = _position(name.strip(), class_names), _weight(said, text)
    if k is None:
        raise unknown("class", name.strip(), list(class_names))
    if not (weight >= 1 and math.isfinite(weight)):
        raise InputError(f"the weight in {text.strip()!r} must be at least 1, what other errors cost; got {weight:g}")
    return kind, k, weight


def _weight(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"the weight in {where.strip()!r} must be a number, got {text.strip()!r}") from None


def _position(name: str, class_names: Sequence[str]) -> int | None:
    """Of a class by its name, or by its name in capitals or small letters if that is one class only."""
    if name in class_names:
        return list(class_names).index(name)
    alike = [i for i, other in enumerate(class_names) if other.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None
