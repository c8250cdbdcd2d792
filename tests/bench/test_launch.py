import json
import os
import time
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
from safetensors import SafetensorError

from clipadapter.bench import FEATURES, open_source, read_runs, run_suite
from clipadapter.bench.bundle import load_bundle, save_bundle
from clipadapter.bench.costs import estimate, estimate_fit_seconds, find_problems
from clipadapter.bench.launcher import Launcher
from clipadapter.bench.plan import load_plan
from clipadapter.bench.protocols.base import create_protocol
from clipadapter.bench.run import append_runs
from clipadapter.bench.sources import apply_prompts
from clipadapter.bench.suite import Prompts, load_suite
from clipadapter.bench.suite_files import list_planned_suites
from clipadapter.classifier import FewShotClassifier
from clipadapter.data import draw_shots
from clipadapter.errors import DataError, InputError, UnknownNameError
from clipadapter.heads.clip_adapter import ClipAdapter
from clipadapter.heads.prototype import Prototype

from ..suite_text import parse_suite

SUITE = 'title = "t"\nheads = ["zero-shot", "prototype"]\nshots = [1, 2]\nseeds = [1, 2]'
ONE_SHOT = SUITE.replace("[1, 2]\nseeds", "[1]\nseeds")


def build_bundle(suite, sources, model, prompts):
    """The features of a suite, as its protocol makes them."""
    bundle = create_protocol(suite.protocol).build(suite, sources, partial(apply_prompts, suite, model, prompts))
    return bundle, bundle.draws


def go(source, out, text=SUITE, **more):
    return run_suite(parse_suite("own", text), [source], {}, out, Launcher(workers=1), **more)


def test_every_run_is_a_record_that_is_not_made_twice_and_a_plan_remembers_other_calls(source, tmp_path, monkeypatch):
    memory, start = [], Launcher.run
    monkeypatch.setattr(Launcher, "run", lambda self, *work: memory.append(self.memory) or start(self, *work))
    first = go(source, tmp_path / "out")
    assert (first.n_made, first.n_existing, first.n_failed) == (8, 0, 0)
    runs = read_runs(tmp_path / "out" / "runs.jsonl")
    assert {(r.head, r.shots, r.seed) for r in runs} == {*product(("zero-shot", "prototype"), (1, 2), (1, 2))}
    shots = [run.shots for run in runs]  # fits of many shots come first, so that no worker waits for one at the end
    assert shots == sorted(shots, reverse=True)
    lines = (tmp_path / "out" / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["format"] for line in lines] == [1] * 8
    (arrays,) = (tmp_path / "out" / "features").glob("*/bundle.safetensors")
    assert memory == [3 * arrays.stat().st_size]  # a worker is given memory for the features
    second = go(source, tmp_path / "out")
    assert (second.n_made, second.n_existing) == (0, 8)
    assert {entry.key for entry in load_plan(tmp_path / "out", "own").entries} == {run.key for run in runs}
    go(source, tmp_path / "out", SUITE.replace("[1, 2]\nseeds", "[4]\nseeds"))
    assert len(load_plan(tmp_path / "out", "own").entries) == 12
    assert list_planned_suites(tmp_path / "out") == ["own"]
    with pytest.raises(DataError, match="no runs of suite 'few'; it has: own"):
        load_plan(tmp_path / "out", "few")


def test_a_run_that_failed_is_a_record_and_is_tried_again_and_features_have_one_text(source, tmp_path):
    heads = '[{ head = "clip-adapter", params = { branch = "none" } }, { head = "knn" }]'
    text = f'title = "t"\nheads = {heads}\nshots = [1]'
    result = go(source, tmp_path / "out", text)
    assert (result.n_made, result.n_failed) == (6, 3)
    failed = [run for run in read_runs(tmp_path / "out" / "runs.jsonl") if run.error]
    assert {run.method for run in failed} == {"clip-adapter"}
    assert "branch must be one of" in failed[0].error
    again = go(source, tmp_path / "out", text)
    assert (again.n_made, again.n_existing) == (3, 3)
    with pytest.raises(InputError, match="needs pictures and an encoder"):
        go(source, tmp_path / "out", SUITE + '\nprotocol = "base-to-new"')


@pytest.fixture
def toy():
    return FewShotClassifier("toy", cache=None)


def test_pictures_to_records(pictures, toy, tmp_path):
    suite, source = parse_suite("own", SUITE), open_source(str(pictures))
    run_suite(suite, [source], {"toy": toy}, tmp_path / "out", Launcher(workers=1))
    runs = read_runs(tmp_path / "out" / "runs.jsonl")
    assert {(run.n_test, run.n_classes, run.data.protocol) for run in runs} == {(9, 3, "given")}
    assert runs[0].templates == ["a photo of a {}."]
    assert {(entry.data, entry.encoder) for entry in load_plan(tmp_path / "out", "own").entries} == {
        ("pictures", "toy")
    }


def test_only_pictures_that_are_drawn_are_encoded_and_unreadable_ones_are_left_out(pictures, toy):
    suite, source = parse_suite("own", ONE_SHOT), open_source(str(pictures))
    bundle, drawn = build_bundle(suite, [source], toy, Prompts(label=""))
    expected = {seed: draw_shots(source.train.labels, 1, seed) for seed in (1, 2)}
    assert drawn == {(1, seed): expected[seed] for seed in (1, 2)}
    assert list(bundle.rows) == sorted({*expected[1], *expected[2]})
    all_features = toy.extract_features(source.train.paths, source.train.labels, source.train.class_names)
    np.testing.assert_allclose(bundle.shots(expected[2]).X, all_features.X[expected[2]], atol=1e-6)
    with pytest.raises(InputError, match="was not drawn"):
        bundle.shots([next(row for row in range(12) if row not in bundle.rows)])
    source.train.paths[5].write_bytes(b"no picture")
    all_shots = suite.model_copy(update={"shots": [4], "seeds": [1]})
    bundle, drawn = build_bundle(all_shots, [source], toy, Prompts(label=""))
    assert 5 not in drawn[4, 1]
    assert len(drawn[4, 1]) == len(bundle.support) == 11
    assert bundle.shots(drawn[4, 1]).y.count("green") == 3


def test_views_of_another_crop_are_another_study(pictures, toy, tmp_path):
    def run(more):
        suite = parse_suite("own", f"{SUITE}\n{more}".replace("[1, 2]\nseeds = [1, 2]", "[2]\nseeds = [1]"))
        source, launcher = open_source(str(pictures)), Launcher(workers=1)
        bundle, _ = build_bundle(suite, [source], toy, Prompts(label=""))
        return bundle, run_suite(suite, [source], {"toy": toy}, tmp_path / "out", launcher)

    (tip, first), (coop, second) = run("views = 3"), run('views = 3\ncrop = "coop"')
    assert (tip.support.provenance["crop"], coop.support.provenance["crop"]) == ("tip", "coop")
    np.testing.assert_array_equal(tip.support.X[:, 0], coop.support.X[:, 0])
    assert np.abs(tip.support.X[:, 1:] - coop.support.X[:, 1:]).max() > 1e-3
    assert (second.n_made, second.n_existing) == (2, 0)
    assert not {run.key for run in first.runs} & {entry.key for entry in load_plan(tmp_path / "out", "own").entries}
    assert load_bundle(save_bundle(coop, tmp_path / "coop")).support.provenance["crop"] == "coop"
    with pytest.raises(InputError, match="views = 3, crop = tip, but the features in .* have other views"):
        go(f"{FEATURES}{tmp_path / 'coop'}", tmp_path / "other", f"{SUITE}\nviews = 3")


PER_EPOCH = """
title = "t"
heads = [
  "prototype",
  { head = "clip-adapter", label = "five", params = { epochs = 5, alpha = 0.2 } },
  { head = "clip-adapter", label = "three", params = { epochs = 3, alpha = 0.2 } },
]
shots = [1, 2]
seeds = [1]
views = "per-epoch"
"""


def test_with_views_for_each_epoch_a_head_gets_as_many_as_it_has_epochs(pictures, toy, tmp_path, monkeypatch):
    suite, views_by_fit = parse_suite("own", PER_EPOCH), {}
    for cls in (ClipAdapter, Prototype):
        fit = cls._fit

        def recorded(self, shots, fit=fit):
            views_by_fit[type(self).__name__, getattr(self, "epochs", None), len(shots.X)] = shots.views.numpy()
            fit(self, shots)

        monkeypatch.setattr(cls, "_fit", recorded)
    source = open_source(str(pictures))

    def run(suite):
        return run_suite(suite, [source], {"toy": toy}, tmp_path / "out", Launcher(workers=1))

    outcome = run(suite)
    assert (outcome.n_made, outcome.n_failed) == (6, 0)
    counts = {key: views.shape[1] for key, views in views_by_fit.items()}
    fits = (("Prototype", None), ("ClipAdapter", 5), ("ClipAdapter", 3))
    assert counts == {(*fit, shots): 1 + (fit[1] or 0) for fit in fits for shots in (3, 6)}
    np.testing.assert_array_equal(views_by_fit["ClipAdapter", 3, 3], views_by_fit["ClipAdapter", 5, 3][:, :4])
    # As many views are another study.
    assert run(suite.model_copy(update={"views": 6})).n_made == 6
    assert run(suite).n_made == 0


def test_features_have_views_for_each_epoch_only_if_they_were_made_so(pictures, toy, source, tmp_path):
    with pytest.raises(InputError, match="views = per-epoch, .* have other views: give the pictures"):
        go(source, tmp_path / "out", PER_EPOCH)
    bundle, _ = build_bundle(parse_suite("own", PER_EPOCH), [open_source(str(pictures))], toy, Prompts(label=""))
    spec = f"{FEATURES}{save_bundle(replace(bundle, rows=None), tmp_path / 'ready')}"
    assert go(spec, tmp_path / "out", PER_EPOCH).n_failed == 0
    longer = go(spec, tmp_path / "out", PER_EPOCH.replace("epochs = 5", "epochs = 7"))
    assert longer.n_failed == 2
    errors = [run.error for run in read_runs(tmp_path / "out" / "runs.jsonl") if run.error]
    assert "have 6 views of each picture, but ClipAdapter makes 7 epochs" in errors[0]


def test_halves_of_base_to_new_are_kept_apart_and_need_a_divided_set(pictures, toy, colour_folder):
    suite = load_suite("base-to-new")
    bundle, _ = build_bundle(suite, [open_source(str(pictures))], toy, Prompts(label=""))
    # Three classes: two are base, the larger half.
    assert (bundle.text.labels, bundle.tests["new"].text.labels) == (("blue", "green"), ("red",))
    for labels in (bundle.support.y, bundle.tests["base"].features.y):
        assert set(labels) == {"blue", "green"}
    assert set(bundle.tests["new"].features.y) == {"red"}
    source = open_source(str(colour_folder("all", 2)))
    with pytest.raises(InputError, match="not divided into train and test"):
        build_bundle(suite, [source], toy, Prompts(label=""))
    bundle, drawn = build_bundle(parse_suite("own", SUITE), [source], toy, Prompts(label=""))
    assert bundle.names == ("rest",)
    assert drawn is None


def test_transfer_measures_on_the_other_data_sets(pictures, toy, colour_folder, tmp_path):
    colour_folder("other", 2, seed=3)
    sources = [open_source(str(pictures)), open_source(str(tmp_path / "other"))]
    for suite in ("shift", "cross-dataset"):
        with pytest.raises(InputError, match=f"'{suite}' measures heads on other data sets.* give --data once more"):
            run_suite(load_suite(suite), sources[:1], {"toy": toy}, tmp_path, Launcher())
    bundle, _ = build_bundle(load_suite("shift"), sources, toy, Prompts(label=""))
    assert [part.kind for part in bundle.tests.values()] == ["given", "shift"]
    (tmp_path / "other" / "red").rename(tmp_path / "other" / "mauve")
    sources[1] = open_source(str(tmp_path / "other"))
    with pytest.raises(DataError, match="has classes that .* has not: mauve"):
        run_suite(load_suite("shift"), sources, {"toy": toy}, tmp_path / "out", Launcher())
    crossed, _ = build_bundle(load_suite("cross-dataset"), sources, toy, Prompts(label=""))
    assert crossed.tests[str(tmp_path / "other")].text.labels == ("blue", "green", "mauve")


def test_prompt_styles_give_other_text(pictures, toy):
    suite = load_suite("prompts")
    source = open_source(str(pictures))
    bundles = [build_bundle(suite, [source], toy, prompts)[0] for prompts in suite.prompts]
    assert [len(bundle.templates) for bundle in bundles] == [1, 1, 7, 1]
    assert bundles[3].templates == ["{}"]
    with pytest.raises(InputError, match="--descriptions FILE"):
        build_bundle(load_suite("prompts-cupl"), [source], toy, Prompts(label="d", descriptions=True))


FOLDS = SUITE.replace("heads", 'protocol = "cross-validation"\nheads')


def one_shot_of(protocol):
    return f'title = "t"\nprotocol = "{protocol}"\nheads = ["zero-shot", "transclip"]\nshots = [1]\nseeds = [1]'


@pytest.mark.parametrize(
    ("text", "data", "encoders", "fits", "pictures_to_encode"),
    [
        # 2 heads, 2 numbers of shots, 2 seeds. Of the 12 pictures of 3 classes 2 x 3 x (1 + 2) are drawn at most.
        (SUITE, ["source", "pictures"], 2, 2 * 2 * 2 * 2 * 2, 2 * (12 + 9)),
        (ONE_SHOT, ["pictures"], 1, 2 * 2, 2 * 3 + 9),
        # Not divided: all views of all pictures.
        (f"{SUITE}\nviews = 4", ["pictures/train"], 1, 8, 12 * 4),
        # 3 classes x (1 + 2) shots of one seed, the plain view and 5 others of each.
        (PER_EPOCH, ["pictures"], 1, 6, 9 * 6 + 9),
        # The test part is not used.
        (FOLDS, ["pictures"], 1, 8 * 5, 12),
        # A transductive head is fitted for each test part, other heads once.
        (one_shot_of("few-shot"), ["pictures"], 1, 1 + 1, 3 + 9),
        (one_shot_of("base-to-new"), ["pictures"], 1, 1 + 2, 3 + 9),
        (one_shot_of("shift"), ["pictures"] * 3, 1, 1 + 3, 3 + 3 * 9),
    ],
)
def test_the_estimate_counts_fits_and_pictures(source, pictures, text, data, encoders, fits, pictures_to_encode):
    paths = {"source": source, "pictures": str(pictures), "pictures/train": str(pictures / "train")}
    cost = estimate(parse_suite("own", text), [paths[name] for name in data], ["lite", "toy"][:encoders])
    assert (cost.fits, cost.pictures) == (fits, pictures_to_encode)
    assert cost.encode_seconds == pytest.approx(cost.pictures / 25)
    assert all(size.ready for size in cost.sizes)


def test_a_set_that_is_not_on_disk_is_estimated_from_its_papers_and_what_cannot_run_is_refused(tmp_path, pictures):
    cost = estimate(load_suite("paper"), ["dtd"], ["lite"], root=tmp_path)
    (size,) = cost.sizes
    assert (size.classes, size.train, size.test, size.ready) == (47, 2820, 1692, False)
    assert "data set 'dtd' is not ready" in size.missing
    assert cost.fits == 8 * 5 * 3
    assert estimate(parse_suite("own", FOLDS), ["dtd"], encoders=["lite"], root=tmp_path).fits == 8 * 5
    with pytest.raises((DataError, UnknownNameError), match="no folder or file"):
        estimate(load_suite("paper"), ["dtx/"], ["lite"], root=tmp_path)
    for path in sorted((pictures / "train" / "red").iterdir())[1:]:
        path.unlink()
    suite = parse_suite("own", FOLDS)
    (problem,) = find_problems(suite, estimate(suite, [str(pictures)], encoders=["lite"]), ["lite"])
    assert "needs two pictures of each class, but has one of: red" in problem


def test_fit_seconds_pass_through_the_two_measured_sizes():
    assert estimate_fit_seconds("auto", 1600, 100, 512) == pytest.approx(1.71)
    assert estimate_fit_seconds("auto", 16_000, 1000, 1024) == pytest.approx(46.25)
    assert estimate_fit_seconds("a head of yours", 1600, 100, 512) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("head", "encoder", "seconds"),
    [
        # 50 epochs of one step with one shot per class, 100 with two; prompts of 16 + 5 tokens for each of 3 classes
        ("coop", "lite", (50 + 100) * 3 * 21 / 1200),
        ("coop", "open_clip:ViT-B-32/openai", (50 + 100) * 3 * 21 / 230),
        # 10 epochs of 3 and of 6 pictures; each of them, and a third of 9 test pictures, has prompts of 4 + 5 tokens
        ("cocoop", "lite", (10 * 3 + 10 * 6 + 2 * 9 // 3) * 3 * 9 / 1200),
    ],
)
def test_the_estimate_counts_the_work_of_heads_that_train_through_the_text_tower(pictures, head, encoder, seconds):
    text = f'title = "t"\nheads = ["{head}"]\nshots = [1, 2]\nseeds = [1]'
    cost = estimate(parse_suite("own", text), [str(pictures)], encoders=[encoder])
    assert cost.fit_seconds == pytest.approx(seconds + 2 * 0.1)


def test_a_suite_about_features_draws_them(source, tmp_path):
    text = 'title = "t"\nfigure = "projection"\nheads = ["zero-shot", "clip-adapter"]\nshots = [2]\nseeds = [1]'
    result = go(source, tmp_path / "out", text)
    # Zero-shot does not adapt features: there is nothing to draw.
    assert [path.name for path in result.figures] == ["f-clip-adapter.png"]
    assert result.figures[0].read_bytes().startswith(b"\x89PNG")


def test_the_error_on_a_full_disk_says_how_many_runs_are_stored(source, tmp_path, monkeypatch):
    calls = []

    def append(path, runs):
        calls.append(path)
        if len(calls) == 4:
            raise InputError(f"can't write {path}: No space left on device")
        append_runs(path, runs)

    with monkeypatch.context() as patch:
        patch.setattr("clipadapter.bench.schedule.append_runs", append)
        words = r"No space left .*\. 3 runs were made and are stored: free some space and repeat"
        with pytest.raises(InputError, match=words):
            go(source, tmp_path / "out")
    again = go(source, tmp_path / "out")
    assert (again.n_made, again.n_existing) == (5, 3)


def test_features_that_do_not_fit_on_the_disk_are_refused_and_leave_no_file(source, tmp_path, monkeypatch):
    def full(arrays, path, metadata):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("clipadapter.bench.bundle.save_file", full)
    with pytest.raises(InputError, match=r"can't write .*No space left"):
        go(source, tmp_path / "out")
    assert not any(path.is_file() for path in (tmp_path / "out" / "features").rglob("*"))


def test_what_a_killed_process_left_a_day_ago_is_removed(source, tmp_path):
    go(source, tmp_path / "out")
    (features,) = (tmp_path / "out" / "features").iterdir()
    (features / "bundle.safetensors").unlink()
    places = [features / f".bundle.safetensors-{age}" for age in ("abcd_new", "abcd_old")]
    for place, seconds in zip(places, (time.time(), 1e9), strict=True):
        place.mkdir()
        (place / "bundle.safetensors").write_bytes(b"half")
        for path in (place / "bundle.safetensors", place):
            os.utime(path, (seconds, seconds))
    go(source, tmp_path / "out")
    assert [place.exists() for place in places] == [True, False] and (features / "bundle.safetensors").is_file()


@pytest.mark.parametrize("name", ["runs.jsonl", "plans", "features", "features/x/bundle.safetensors"])
def test_links_in_a_folder_of_records_are_not_followed(name, source, tmp_path):
    home, link = tmp_path / "home", tmp_path / "out" / name
    home.mkdir()
    (home / "0.json").write_text('{"format":2, mine')
    link.parent.mkdir(parents=True)
    link.symlink_to(home / "0.json" if "." in name else home)
    with pytest.raises(DataError, match="is a link"):
        go(source, tmp_path / "out")
    assert [path.read_text() for path in home.iterdir()] == ['{"format":2, mine']
