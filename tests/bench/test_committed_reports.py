"""The committed reports are what the committed records give: no table, note or name of a plot changes unseen."""

import functools
import lzma
from pathlib import Path

import pytest

from clipadapter.bench import load_study, study
from clipadapter.bench.report import build_report

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.mark.slow
@pytest.mark.parametrize("folder", sorted(path.parent for path in RESULTS.glob("*/plans")), ids=lambda path: path.name)
def test_committed_reports_are_those_of_the_committed_records(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "read_existing_runs", functools.cache(study.read_existing_runs))  # once for all reports
    (tmp_path / "plans").mkdir()
    for file in [*folder.glob("plans/*.xz"), folder / "runs.jsonl.xz"]:
        (tmp_path / file.relative_to(folder)).with_suffix("").write_bytes(lzma.decompress(file.read_bytes()))
    for report in sorted(folder.glob("reports/*.md")):
        document = build_report(load_study(tmp_path, report.stem))
        assert document.to_markdown() == report.read_text(encoding="utf-8")
