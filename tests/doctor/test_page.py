import base64
import io
import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from clipadapter.doctor import Diagnosis, Finding, Picture, render_findings
from clipadapter.doctor.findings import rank_findings
from clipadapter.rendering.html import read_asset

from ..markup import Markup


@pytest.fixture
def diagnosis(tmp_path, draw):
    """Six findings of two kinds; names contain HTML, and one file is missing."""
    findings = [Finding("few-shots", 0.5, "'<b>cat</b>' has 2 pictures", (), ("<b>cat</b>",))]
    for i in range(5):
        path = tmp_path / f"{i}.png"
        if i:
            draw(i, size=(300, 200)).save(path)
        findings.append(Finding("wrong-label", i / 10, f"finding {i}", (Picture(path, f"<i>{i}.png", "ant", "train"),)))
    return Diagnosis("pets", "toy", 9, 2, ("train", "test"), 8, rank_findings(findings))


def test_the_worst_findings_come_first():
    kinds = ["blurry", "few-shots", "leak", "wrong-label", "conflict"]
    ranked = rank_findings([Finding(kind, 0.5, "") for kind in kinds] + [Finding("leak", 0.9, "")])
    assert [finding.kind for finding in ranked] == ["conflict", "leak", "leak", "wrong-label", "few-shots", "blurry"]
    assert [finding.score for finding in ranked] == [0.5, 0.9, 0.5, 0.5, 0.5, 0.5]


def test_the_text_has_the_first_findings_of_each_kind_and_advice_and_json_has_all(diagnosis):
    lines = diagnosis.to_text(max_per_kind=2).splitlines()
    assert lines[0] == "9 pictures in 2 classes (train, test), encoder toy"
    assert lines[1:6] == ["", "warning: labels that are likely wrong: 5", "  finding 4", "  finding 3", "  and 3 more"]
    assert lines[6].startswith("  -> Check each")
    data = json.loads(json.dumps(diagnosis.to_dict()))
    assert data["counts"] == {"wrong-label": 5, "few-shots": 1}
    assert data["findings"][0]["pictures"] == [{"path": "<i>4.png", "label": "ant", "split": "train"}]
    assert data["findings"][0]["severity"] == "warning"


def test_the_page_loads_no_file_contains_its_thumbnails_escapes_names_and_has_targets_for_links(diagnosis, tmp_path):
    text = diagnosis.to_html(tmp_path / "new" / "doctor.html").read_text(encoding="utf-8")
    page = Markup(text)
    sources = [image["src"] for image in page.all("img")]
    assert len(sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.findall(r"https?://|@import|url\(", text)
    assert not page.all("script", "link")
    assert not page.all("b", "i") and page.all("img")[0]["alt"] == "<i>4.png"  # names are escaped
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)
    assert all(image["alt"] for image in page.all("img"))
    assert page.all("html")[0]["lang"] == "en"
    size = Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1]))).size
    assert size == (192, 128)
    assert "unreadable" in text  # the missing file


def test_the_number_of_thumbnails_is_limited(diagnosis, tmp_path):
    html = render_findings(diagnosis, per_kind=2, side=40)
    assert re.findall(r'section id="([a-z-]+)"', html) == ["wrong-label", "few-shots"]
    assert html.count('class="doctor-finding"') == 3
    assert "5 findings, the first 2 are shown" in html and "<summary>1 finding</summary>" in html
    pictures = tuple(Picture(tmp_path / "1.png", str(i), "a", "all") for i in range(30))
    many = replace(diagnosis, findings=(Finding("duplicate", 1.0, "many", pictures),))
    html = render_findings(many)
    assert html.count("<img") == 8 and "and 22 more pictures" in html


def test_the_style_sheet_has_all_classes_of_the_sections(diagnosis):
    html = render_findings(diagnosis)
    assert html.count("<section") == html.count("</section>") == 2
    used = set(re.findall(r"doctor-[a-z]+", html))
    css = read_asset("clipadapter.doctor", "findings.css")
    assert {name for name in used if f".{name}" not in css} == set()


def test_a_diagnosis_without_findings_says_so(tmp_path):
    diagnosis = Diagnosis("pets", "toy", 9, 2, ("all",), 9, ())
    assert diagnosis.to_text() == "9 pictures in 2 classes, encoder toy\nno findings"
    assert "There are no findings." in diagnosis.to_html(tmp_path / "doctor.html").read_text(encoding="utf-8")
