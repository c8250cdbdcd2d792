"""docs/speed.md is written from results that are committed, and nothing in it by hand."""

import importlib
import json
import re

import pytest

from .pages import ROOT

STUDY = {
    "seconds": 61.4,
    "runs": 345,
    "heads": {"gda": 3.0, "auto": 20.0},
    "busy": 0.93,
    "workers": 2,
    "size": {"classes": 100, "width": 512, "shots": [1, 2], "seeds": 3},
}
STORE = {
    "rows": [{"work": "puts", "plain": 2.0, "store": 1.0, "ratio": {"median": 0.5, "low": 0.4, "high": 0.6}}],
    "whole": {"open_ms": 0.6, "items_mb": 10.0},
    "vectors": 30_000,
    "width": 512,
}


@pytest.fixture
def speed_page(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "speed")
    return importlib.import_module("speed_page")


def measured(*results, load=0.1):
    facts = {"machine": "a processor", "versions": "torch 9", "date": "2026-01-01", "commit": "abc", "small": False}
    return {"results": list(results), "seconds": 90.0, "load": load, **facts}


def test_the_page_of_speed_is_what_its_results_give(speed_page):
    page = speed_page.PAGE.read_text(encoding="utf-8")
    is_written = "is written by `benchmarks/speed/speed_page.py`" in page
    assert speed_page.RESULTS.exists() == is_written, "commit the page and its results together"
    if is_written:
        results = json.loads(speed_page.RESULTS.read_text(encoding="utf-8"))
        assert page == speed_page.write_page(results), "run: python benchmarks/speed/speed_page.py --write-only"


def test_the_page_begins_with_what_was_measured_and_leaves_out_what_was_not(speed_page):
    page = speed_page.write_page({"study": measured(STUDY), "store": measured(STORE, load=3.0)})
    summary = page[: page.index("\n## ")]
    assert [line for line in summary.splitlines() if line.startswith("- ")] == [
        "- **A study** of 2 heads, 345 fits and evaluations: 61 s ([all heads](#all-heads))."
    ]
    assert "\n## Texts\n" not in page
    assert re.findall(r"other programs were running \((.*)\)", page) == ["3.0 cores were busy before it began"]
    assert "| puts | 2 | 1 | 0.50 (0.40 to 0.60) |" in page


def test_each_item_of_the_summary_has_a_link_to_a_section_of_the_page(speed_page):
    template = speed_page.TEMPLATE.read_text(encoding="utf-8")
    anchors = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", template, re.MULTILINE)}
    items = re.split(r"^- ", template[: template.index("\n## ")], flags=re.MULTILINE)[1:]
    assert 5 <= len(items) <= 8
    for item in items:
        assert set(re.findall(r"\]\(#([\w-]+)\)", item)) & anchors, item
