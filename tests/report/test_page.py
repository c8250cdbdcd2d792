import re
from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from clipadapter.classifier import FewShotClassifier
from clipadapter.data import Dataset, Sample
from clipadapter.errors import InputError
from clipadapter.rendering.method_colours import method_style
from clipadapter.report import make_report
from clipadapter.report import report as report_module
from clipadapter.uncertainty import UncertaintyOptions

from ..markup import Markup


@pytest.fixture(scope="session")
def html(report):
    return report.to_html()


@pytest.fixture(scope="session")
def parsed(html):
    return Markup(html)


def test_the_page_loads_no_file(html, parsed):
    for _, attributes in parsed.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
    assert not re.search(r"@import|url\(", html)
    assert set(re.findall(r"https?://[^\"' ]+", html)) == {"http://www.w3.org/2000/svg"}


def test_names_are_text_and_never_markup(parsed, test_part):
    assert len(parsed.all("script")) == 2 and not parsed.all("u")
    assert parsed.data["classes"] == [name.replace("\u2028", "\\u2028") for name in test_part.class_names]
    assert "<u>colours</u>" in parsed.text and '</script><b>blau"' in parsed.text
    assert "<i>ü\"'0.png" in parsed.data["test"]["name"][0]


def test_columns_have_an_entry_per_picture_and_thumbnails_are_stored_once(parsed):
    columns = parsed.data["test"]
    assert {name: len(column) for name, column in columns.items()} == dict.fromkeys(columns, 15)
    assert parsed.data["map"]["rows"] == list(range(27))
    assert all(len(view["xy"]) == 54 for view in parsed.data["map"]["views"])
    data = parsed.data
    used = data["test"]["thumb"] + data["shots"]["thumb"]
    assert sorted(used) == list(range(27)) and len(data["thumbs"]) == 27
    assert "shown by name only" not in parsed.text


def test_metrics_are_compared_with_the_baselines_and_confusions_curve_and_risk_are_in_the_data(parsed, report):
    assert "<u>colours</u>: 86.7 % of 15 pictures classified correctly" in parsed.text
    assert list(report.metrics_by_model) == ["this model", "zero-shot", "linear-probe"]
    assert "0.0 points" in parsed.text  # the model is a linear probe
    answers = zip(parsed.data["test"]["label"], parsed.data["test"]["answer"], strict=True)
    assert [(a, b) for a, b in answers if a != b] == [(0, 2), (0, 2)]
    curve = parsed.data["curve"]
    assert curve["shots"] == [1, 2, 4] and curve["series"][0]["name"] == "linear-probe, as this model"
    assert [one["name"] for one in parsed.data["risk"]] == ["this model", "zero-shot", "linear-probe"]
    assert parsed.data["risk"][0]["points"][-1] == [1, pytest.approx(2 / 15, abs=1e-4)]
    assert sum(n for *_, n in parsed.data["reliability"][0]["bins"]) == 15


def test_a_system_has_the_colour_of_its_method_in_every_chart(parsed):
    curve = {series["name"].partition(",")[0]: series for series in parsed.data["curve"]["series"]}
    risk = {series["name"]: series["colour"] for series in parsed.data["risk"]}
    for name in ("zero-shot", "linear-probe"):
        assert risk[name] == curve[name]["colour"] == method_style(name).css
    assert risk["this model"] == parsed.data["reliability"][0]["colour"] == risk["linear-probe"]  # the model's head
    assert [name for name, series in curve.items() if series["level"]] == ["zero-shot"]


def test_the_doctor_checks_shots_and_test_pictures_together(model, test_part, shots, parsed):
    path, label = shots[0]
    leaking = replace(test_part, samples=(*test_part.samples, Sample(path, label, "test")))
    prompts = model.prompts_
    new_report = make_report(model, leaking, curve=False)
    assert model.prompts_ is prompts  # the doctor gets a copy of the model
    leaks = [{picture.path for picture in leak.pictures} for leak in new_report.doctor.diagnosis.of_kind("leak")]
    assert {path} in leaks and new_report.evaluation.among_shots == 1
    html_page = Markup(new_report.to_html())
    assert "One picture in two splits" in html_page.text
    # The leak is the headline, in place of the accuracy.
    assert "1 of 16 test pictures is a shot of the model" in html_page.text
    assert "classified correctly</h1>" not in new_report.to_html()
    assert model.descriptions is None and "27 pictures in 3 classes (train, test)" in parsed.text


def test_thumbnails_of_a_large_set_are_those_of_mistakes_first(report, monkeypatch):
    monkeypatch.setattr(report_module, "encode_thumbnails", lambda paths, *_: ["AAAA"] * 5 + [""] * (len(paths) - 5))
    html_page = Markup(report.to_html())
    shown = [i for i, at in enumerate(html_page.data["test"]["thumb"]) if at >= 0]
    assert set(report.evaluation.model.mistakes) <= set(shown)
    assert "of 15 test pictures and" in html_page.text and "are shown by name only" in html_page.text


def test_shots_without_files_are_shown_by_name_and_do_not_count_as_few(model, test_part, tmp_path, shots):
    moved = with_sources(model, [str(tmp_path / f"gone-{i}.png") for i in range(12)])
    new_report = make_report(moved, test_part, curve=False)
    html_page = Markup(new_report.to_html())
    assert new_report.doctor.n_missing_shots == 12 and "few-shots" not in new_report.doctor.diagnosis.counts
    assert html_page.data["shots"]["thumb"] == [-1] * 12 and "gone-3.png" in html_page.data["shots"]["name"][3]
    sources = [str(path) for path, _ in shots[:2]] + [str(tmp_path / f"gone-{i}.png") for i in range(10)]
    results = make_report(with_sources(model, sources), test_part, curve=False).doctor
    assert results.n_missing_shots == 10 and results.diagnosis.splits == ("train", "test")
    assert not {"no-shots", "few-shots", "imbalance"} & set(results.diagnosis.counts)


def with_sources(model, sources):
    """The same model with other paths of its shots."""
    other = copy(model)
    other.support_ = replace(model.support_, provenance={**model.support_.provenance, "sources": sources})
    return other


def test_a_head_that_tunes_the_encoder_has_no_baselines(model, test_part):
    tuned = copy(model)
    tuned.head_ = copy(model.head_)
    tuned.head_.tunes_encoder = True
    new_report = make_report(tuned, test_part, doctor=False)
    assert list(new_report.metrics_by_model) == ["this model"]
    assert "The head tunes the encoder" in Markup(new_report.to_html()).text


def test_costs_of_mistakes_are_measured(shots, test_part):
    costs = np.array([[0, 1, 5], [1, 0, 1], [1, 1, 0]])
    paths, labels = zip(*shots, strict=True)
    options = UncertaintyOptions(costs=costs, sets="cv+")
    fitted = FewShotClassifier("toy", "linear-probe", cache=None, uncertainty=options)
    new_report = make_report(fitted.fit(paths, labels, test_part.class_names), test_part, curve=False, doctor=False)
    best, truth = new_report.answers.best, new_report.evaluation.model.labels
    measured, total = new_report.uncertainty["cost"], sum(costs[a, b] for a, b in zip(truth, best, strict=True))
    assert measured["mean"] == pytest.approx(total / 15)
    assert measured["of_the_likeliest"] == pytest.approx(10 / 15)  # two mistakes of 5
    assert "if the likeliest class is predicted" in Markup(new_report.to_html()).text


def test_models_with_one_shot_per_class_or_none_have_a_page(fit, shots, test_part, tmp_path):
    fitted = fit(shots, "zero-shot")
    fitted.save(tmp_path / "model", support=False)
    loaded = type(fitted).load(tmp_path / "model", cache=None)
    new_report = make_report(loaded, test_part)
    html_page = Markup(new_report.to_html())
    assert list(new_report.metrics_by_model) == ["this model", "zero-shot"]
    assert "saved without its shots" in html_page.text and html_page.data["curve"] is None
    assert html_page.data["test"]["near"] == [[]] * 15
    new_report = make_report(fit(shots[::4], "tip-adapter"), test_part)
    assert Markup(new_report.to_html()).data["curve"] is None


def test_multilabel_sets_are_refused(model, test_part):
    samples = tuple(Sample(one.path, None, "test", (one.label,)) for one in test_part.samples)
    with pytest.raises(InputError, match="one label per picture, but the model or 'many' has several"):
        make_report(model, Dataset("many", test_part.root, samples, test_part.class_names))


def test_the_page_is_written_completely_or_not_at_all(report, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't write"):
        report.write(tmp_path / "file" / "report.html")
    written = report.write(tmp_path / "new" / "report.html")
    assert [path.name for path in written.parent.iterdir()] == ["report.html"]
    (tmp_path / "taken.html").mkdir()
    with pytest.raises(InputError, match="can't write"):
        report.write(tmp_path / "taken.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new", "taken.html"]


def test_equal_calibration_errors_are_named_once(report):
    score = report.evaluation.model
    score = replace(score, logits=np.log(score.probabilities + 1e-30))
    as_calibrated = replace(report, evaluation=replace(report.evaluation, model=score))
    text = Markup(as_calibrated.to_html()).text
    assert "%, with and without calibration." in text and "Calibration error, this model" not in text
