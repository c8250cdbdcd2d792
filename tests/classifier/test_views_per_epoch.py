"""views="per-epoch": a new view of each picture for each epoch, through `FewShotClassifier`."""

import dataclasses
import itertools

import numpy as np
import pytest

from clipadapter import FewShotClassifier
from clipadapter.classifier.reader import Reader
from clipadapter.errors import InputError
from clipadapter.features import PerEpochViews, ViewCost, ViewSpec
from clipadapter.heads.clip_adapter import ClipAdapter
from clipadapter.heads.taskres import TaskRes


def pictures(n=6, seed=0):
    rng = np.random.default_rng(seed)
    base = np.array([[220, 30, 30], [30, 180, 30], [30, 30, 220]])
    images = [np.clip(base[i % 3] + rng.integers(-25, 26, (24, 24, 3)), 0, 255).astype(np.uint8) for i in range(n)]
    return images, [("red", "green", "blue")[i % 3] for i in range(n)]


def model(views="per-epoch", **params):
    defaults = {"encoder": "toy", "cache": None, "head": ClipAdapter(alpha=0.2, epochs=5)}
    return FewShotClassifier(**{**defaults, **params}, views=views)


def test_the_views_are_those_of_the_same_number_so_that_the_fit_is_the_same():
    images, labels = pictures()
    first, second = (model(views).fit(images, labels) for views in ("per-epoch", 6))
    np.testing.assert_array_equal(first.logits(images), second.logits(images))  # toy computes row by row
    assert first.support_.X.shape[:2] == (6, 1 + 5) and first.support_.provenance["views"] == 6
    plain = model(1).extract_features(images, labels, first.class_names_)
    np.testing.assert_array_equal(first.support_.X[:, 0], plain.X)  # toy computes row by row


@pytest.mark.parametrize(
    ("head", "each", "epochs"),
    [
        *((ClipAdapter.official(), each, epochs) for each, epochs in ((1, 50), (2, 100), (8, 200))),
        # 39 shots in batches of 16 are 2 steps per epoch: 50 epochs make 100 steps.
        (ClipAdapter(steps=100, batch_size=16), 13, 50),
    ],
)
def test_there_is_one_view_for_each_epoch_or_as_many_as_the_steps_need(head, each, epochs):
    assert model(head=head).view_cost([], ["red", "green", "blue"] * each).views == 1 + epochs


def test_a_dear_training_gets_no_more_views_than_it_makes_epochs(monkeypatch):
    images, labels = pictures()
    monkeypatch.setattr(ClipAdapter, "max_cost", 6 * (32 * 3 + 2 * 32 * 8) * 4)
    tried = model(head=ClipAdapter(alpha=0.2, steps=3))
    assert tried.view_cost(images, labels) == ViewCost(pictures=6, views=1 + 4, dim=32, cached=False)
    assert tried.fit(images, labels).support_.X.shape[1] == 1 + 4


def test_a_grid_gets_views_for_the_most_epochs():
    tried = model(head=ClipAdapter(alpha=0.2), grid={"epochs": [2, 7], "lr": [1e-3, 1e-2]})
    assert tried.view_cost([], ["red", "blue"]).views == 1 + 7
    images, labels = pictures(12)
    assert tried.fit(images, labels).support_.X.shape[1] == 1 + 7


def test_crop_scale_and_seed_come_from_the_views():
    given = ViewSpec.from_crop("coop", seed=3)
    names = ["blue", "red"]
    assert model(PerEpochViews(given))._plan_views(names, names) == dataclasses.replace(given, count=6)
    assert model(seed=4)._plan_views(names, names).seed == 4


def test_unreadable_pictures_that_make_more_epochs_necessary_get_more_views(tmp_path):
    # 8 shots are 2 steps per epoch, 7 are 1: 40 steps are then 40 epochs in place of 20.
    images, labels = pictures(8)
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    images[3] = tmp_path / "no.jpg"
    head = ClipAdapter(alpha=0.2, steps=40, batch_size=4)
    fitted = model(head=head).fit(images, labels)
    assert fitted.support_.X.shape[:2] == (7, 1 + 40)


@pytest.mark.parametrize("head", ["tip-adapter", "zero-shot", "auto", "clip-lora"])
def test_a_head_without_epochs_is_refused_before_a_picture_is_encoded(head, monkeypatch):
    images, labels = pictures()
    refused = model(head=head, encoder="toy" if head != "clip-lora" else "lite")
    monkeypatch.setattr(Reader, "extract", None)
    with pytest.raises(InputError, match=r"has no epochs .* give a number of views, .* these heads: .*clip-adapter"):
        refused.fit(images, labels)


def test_views_that_take_too_much_memory_are_refused_before_a_picture_is_encoded(monkeypatch):
    images, labels = pictures()
    monkeypatch.setattr(Reader, "extract", None)
    with pytest.raises(InputError, match=r"of 10000001 views of 6 pictures take 7.2 GiB, but at most 4.0 GiB"):
        model(head=ClipAdapter(epochs=10**7)).fit(images, labels)


def test_an_unknown_name_of_views_is_refused():
    with pytest.raises(InputError, match="a number, 'per-epoch', a ViewSpec or PerEpochViews, but is 'per epoch'"):
        model("per epoch").fit(*pictures())


def test_shots_that_come_later_get_the_same_number_of_views_also_after_loading(tmp_path):
    images, labels = pictures(9)
    folder = model(PerEpochViews(ViewSpec.from_crop("coop"))).fit(images[:6], labels[:6]).save(tmp_path / "model")
    more = FewShotClassifier.load(folder, cache=None).add_examples(images[6:], labels[6:])
    at_once = model(ViewSpec.from_crop("coop", count=6)).fit(images, labels)
    assert more.support_.X.shape == (9, 6, 32)
    np.testing.assert_array_equal(more.support_.X, at_once.support_.X)  # toy computes row by row
    assert more.support_.provenance["fit"]["views"]["count"] == 6


def test_calibration_is_learned_from_plain_pictures(monkeypatch):
    images, labels = pictures(12)
    seen = []
    logits = ClipAdapter.logits
    monkeypatch.setattr(ClipAdapter, "logits", lambda self, X: seen.append(np.asarray(X)) or logits(self, X))
    fitted = model().fit(images, labels)
    plain = {row.tobytes() for row in fitted.support_.plain}
    assert seen
    assert {row.tobytes() for X in seen for row in X} <= plain


def test_multilabel_heads_have_per_epoch_views_too():
    images, _ = pictures()
    labels = [("red",), ("green", "blue"), ("blue",), ("red", "green"), (), ("green",)]
    assert model().fit(images, labels).support_.X.shape[1] == 6
    with pytest.raises(InputError, match="TaskRes is a single-label head"):
        model(head=TaskRes(epochs=3)).fit(images, labels)


def test_the_cost_is_pictures_times_views_times_width_times_four_bytes_and_at_most_four_gibibytes():
    cost = ViewCost(pictures=1000, views=201, dim=1024, rate=67.0)
    assert cost.n_images == 201_000
    assert cost.n_bytes == 1000 * 201 * 1024 * 4
    assert cost.seconds == 3000
    assert cost.time == "50 min at 67 images per second"
    assert str(cost).startswith("201,000 images to encode (1,000 pictures x 201 views); their features take 785.2 MiB")
    assert "an interrupted run continues" in str(cost)
    assert str(ViewCost(1, 2, 3, cached=False)).endswith("They are not cached.")
    ViewCost(pictures=1024, views=1024, dim=1024).check()
    with pytest.raises(InputError, match="at most 4.0 GiB"):
        ViewCost(pictures=1024, views=1024, dim=1025).check()


def test_the_cost_is_known_before_the_fit_and_measuring_leaves_its_views_in_the_store(tmp_path, monkeypatch):
    images, labels = pictures()
    classifier = model(cache=tmp_path / "features.db", head=ClipAdapter(alpha=0.2, epochs=20))
    assert classifier.view_cost(images, labels) == ViewCost(pictures=6, views=21, dim=32)
    clock = itertools.count()
    monkeypatch.setattr("clipadapter.classifier.classifier.time.perf_counter", lambda: next(clock))
    # Two pictures, 16 augmented views and the plain one of each, in what the clock says is a second.
    assert classifier.view_cost(images, labels, measure=True).rate == 34
    assert classifier.view_cost(images, labels, measure=True).rate is None
    assert classifier.fit(images, labels).support_.provenance["computed"] == 6 * 21 - 34


def test_measuring_takes_the_pictures_that_an_interrupted_run_has_not_reached(tmp_path):
    images, labels = pictures()
    classifier = model(cache=tmp_path / "features.db", head=ClipAdapter(alpha=0.2, epochs=20))
    classifier.extract_features(images[:4], labels[:4], ["red", "green", "blue"])
    assert classifier.view_cost(images, labels, measure=True).rate > 0


def test_pictures_with_many_views_are_prepared_a_few_at_a_time(monkeypatch):
    from clipadapter.features import extraction

    ahead, most = [0], [0]
    prepare, encode = extraction.prepare_image, extraction.encode_batch

    def counted(*args):
        ahead[0] += 1
        most[0] = max(most[0], ahead[0])
        return prepare(*args)

    def done(job, batch):
        ahead[0] -= len(batch)
        return encode(job, batch)

    monkeypatch.setattr(extraction, "prepare_image", counted)
    monkeypatch.setattr(extraction, "encode_batch", done)
    monkeypatch.setattr(extraction, "MAX_WAITING_BYTES", 1)
    images, labels = pictures(30)
    model().extract_features(images, labels, ["red", "green", "blue"])
    assert most[0] <= 2 + 7  # two that wait, and those of one batch of 32 with 6 views each
