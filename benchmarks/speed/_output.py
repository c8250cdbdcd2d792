"""Results of a benchmark as JSON, the same way in every script, for `speed_page.py`."""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json FILE``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file, as JSON")


def write_json(path: Path | None, **results: Any) -> None:
    """Write the results, if ``--json`` was used; numbers of numpy and torch become plain ones."""
    if path is not None:
        path.write_text(json.dumps(results, indent=1, default=float) + "\n", encoding="utf-8")


def summarise(values: Iterable[float]) -> dict[str, float]:
    """Median, lowest and highest value of the rounds."""
    values = list(values)
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratios(reference: Iterable[float], seconds: Iterable[float]) -> dict[str, float]:
    """How many times as fast, round by round: other programs slow both sides of a round."""
    return summarise(a / b for a, b in zip(reference, seconds, strict=True))
