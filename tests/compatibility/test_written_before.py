"""Models, stores, exports, records and projects that earlier versions wrote are read as what they were.

See fixtures/README.md for where they come from.
"""

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from clipadapter import FeatureStore, FewShotClassifier, Predictor
from clipadapter.bench import fitting, load_study, read_runs, run_suite
from clipadapter.bench.launchers import create_launcher
from clipadapter.heads import create_head, default_parameters, head_info, list_heads
from clipadapter.persistence import load_model
from clipadapter.studio import Project

FIXTURES = Path(__file__).parent / "fixtures"
TEST_PICTURES = [FIXTURES / f"pictures/test/{name}/{i}.png" for name in ("red", "green", "blue") for i in range(2)]
MODELS = [
    (folder.name, name)
    for folder in sorted(FIXTURES.glob("models-format-*"))
    for name in json.loads((folder / "answers.json").read_text())["answers"]
]


@pytest.mark.parametrize(("folder", "name"), MODELS)
def test_a_saved_model_gives_the_probabilities_that_it_gave(folder, name):
    model = FewShotClassifier.load(FIXTURES / folder / name, cache=None)
    expected = json.loads((FIXTURES / folder / "answers.json").read_text())["answers"][name]
    np.testing.assert_allclose(model.predict_proba(TEST_PICTURES), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["taskres", "linear-probe", "lp++"])
def test_an_old_model_is_edited_with_the_loss_that_it_was_fitted_with(name):
    folder = FIXTURES / "models-format-3" / name
    before = load_model(folder)
    names = {"logit_adjustment", "gce_q"} & set(before.head.get_params())
    assert {key: before.head.get_params()[key] for key in names} == dict.fromkeys(names, 0.0)

    edited = FewShotClassifier.load(folder, cache=None).add_examples(TEST_PICTURES[:2], ["red", "red"])
    support = edited.support_  # 6 shots of red, 4 of the others
    saved = json.loads((folder / "config.json").read_text())["head"]["params"]
    expected = create_head(name, **saved, **dict.fromkeys(names, 0.0))
    expected.fit_from(before.head, support.X, support.y, text=before.text)
    np.testing.assert_allclose(edited.head_.logits(support.plain), expected.logits(support.plain), rtol=1e-5)


def test_values_for_old_models_are_those_of_parameters():
    for name in list_heads():
        cls = head_info(name).cls
        assert set(cls.before_added) <= set(default_parameters(name)), name


def test_a_change_of_an_earlier_version_can_be_undone():
    model = FewShotClassifier.load(FIXTURES / "models-format-3" / "edited", cache=None)
    assert model.predict(TEST_PICTURES[:1]) == ["crimson"]
    assert model.undo().predict(TEST_PICTURES[:1]) == ["red"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_store_gives_every_feature_that_was_put(tmp_path, number):
    path = shutil.copy(FIXTURES / f"store-format-{number}.sqlite", tmp_path / "store.sqlite")
    with closing(FeatureStore(path)) as store:
        features = [value for _, value in store.items()]
    assert len(features) >= 12
    assert all(value.shape == (32,) and np.isfinite(value).all() for value in features)


@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_an_exported_file_gives_the_labels_that_it_gave(suffix):
    pytest.importorskip({"onnx": "onnxruntime", "xml": "openvino"}[suffix])
    labels = Predictor(FIXTURES / "exports" / f"m.{suffix}").predict(TEST_PICTURES)
    assert labels == ["red", "red", "green", "green", "blue", "blue"]


@pytest.mark.parametrize("folder", ["bench-f13f995", "bench-acb6b95"])
def test_a_study_shows_the_figures_of_its_records(folder):
    records = [json.loads(line) for line in (FIXTURES / folder / "runs.jsonl").read_text().splitlines()]
    study = load_study(FIXTURES / folder, "s")
    assert sorted(run.metrics.accuracy for run in study.runs) == sorted(one["metrics"]["accuracy"] for one in records)
    assert not study.missing and not study.superseded


# clip-adapter has other default parameters since f13f995, and version 2 since acb6b95: its four runs are other runs.
@pytest.mark.parametrize("folder", ["bench-f13f995", "bench-acb6b95"])
def test_a_study_goes_on_from_its_records_and_fits_again_what_changed(tmp_path, monkeypatch, folder):
    out = shutil.copytree(FIXTURES / folder, tmp_path / "out")
    before = load_study(out, "s")
    # The records name the libraries that made them.
    monkeypatch.setattr(fitting, "library_versions", lambda: before.runs[0].versions)
    (features,) = (out / "features").iterdir()
    rows = {(run.shots, run.seed): run.rows for run in before.runs}
    outcome = run_suite(before.suite, [f"features:{features}"], {}, out, create_launcher("local", workers=1), rows=rows)
    assert (outcome.n_made, outcome.n_existing) == (4, 8)
    after = load_study(out, "s")
    assert {run.key: run.metrics for run in before.runs}.items() <= {run.key: run.metrics for run in after.runs}.items()
    assert {run.format for run in read_runs(out / "runs.jsonl")} == {3}
    assert {path.stem for path in (out / "runs").iterdir()} == set(after.records)


@pytest.mark.parametrize("folder", ["studio-f13f995", "studio-acb6b95"])
def test_a_project_of_the_studio_has_its_pictures_and_can_be_undone(tmp_path, folder):
    with Project(shutil.copytree(FIXTURES / folder, tmp_path / "project")) as project:
        assert {name: len(pictures) for name, pictures in project.contents.classes.items()} == {
            "red": 3,
            "green/x": 4,
            "blue?": 4,
        }
        while project.next_undo:
            project.undo()
        assert project.contents.classes == {}
