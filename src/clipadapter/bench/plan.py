"""The plan of a suite: its records before they are made."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from clipadapter.bench.suite import Suite
from clipadapter.bench.suite_files import missing_study, plan_file
from clipadapter.errors import DataError
from clipadapter.persistence.format import FrozenModel
from clipadapter.utils.files import write_atomically


class Entry(FrozenModel):
    """One planned record of a suite."""

    key: str  # of the record
    label: str  # the suite's name for the head
    prompts: str = ""  # the suite's name for the prompts; empty if there is one kind
    data: str  # the data set that gives the shots, as the user named it
    encoder: str  # likewise
    test: str  # name of the test part; for a stream the order of its tasks
    shots: int
    seed: int
    value: float | str | None = None  # of the parameter that varies, if one does


class Plan(FrozenModel):
    """All planned records of a suite, as ``plans/SUITE.json``."""

    suite: Suite
    entries: list[Entry]

    def save(self, folder: Path) -> Path:
        """Write the plan to the folder of records, with the entries of earlier calls: other data, encoders, shots."""
        path, suite, entries = plan_file(folder, self.suite.name), self.suite, list(self.entries)
        if path.exists():
            earlier, known = load_plan(folder, suite.name), {entry.key for entry in entries}
            # Other views of the pictures belong to another study.
            if (earlier.suite.views, earlier.suite.crop) == (suite.views, suite.crop):
                entries += [entry for entry in earlier.entries if entry.key not in known]
        return write_atomically(path, Plan(suite=suite, entries=entries).model_dump_json(indent=1) + "\n")


def load_plan(folder: Path, name: str) -> Plan:
    """Read the plan of a suite that was run in a folder."""
    path = plan_file(folder, name)
    try:
        return Plan.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise missing_study(folder, name) from error
    except (OSError, ValidationError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}; delete it and run the suite again") from error
