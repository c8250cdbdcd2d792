"""The switch of quality: which features the model is fitted to, what is computed, and what is remembered."""

import json
import threading

import numpy as np
import pytest
from PIL import Image

from clipadapter.classifier import FewShotClassifier
from clipadapter.encoders import create_encoder
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.errors import InputError
from clipadapter.heads.nearest_mean import NearestMean
from clipadapter.studio.actions import Tab
from clipadapter.studio.panels import Panels, quality_options, relative_cost

from .conftest import fill, noisy, settle

BLOCKS = {
    "fast": ["final"],
    "standard": ["final", "inner"],
    "best": ["final", "inner", "final@48+mirrored", "inner@48+mirrored", "rare-patches@48+mirrored"],
}
HEAD = "nearest-mean"


@pytest.fixture(autouse=True)
def wide_head(monkeypatch):
    """A quick head that reads all blocks."""
    monkeypatch.setattr(NearestMean, "reads", "all")


@pytest.fixture
def passes(monkeypatch):
    """How many pictures each network of the toy encoder has taken, by its layers and its size."""
    counts, build = {}, ToyEncoder.layer_network

    def layer_network(self, layers, size):
        network, key = build(self, layers, size), (tuple(layers), size)

        def count(module, inputs):
            counts[key] = counts.get(key, 0) + len(inputs[0])

        network.register_forward_pre_hook(count)
        return network

    monkeypatch.setattr(ToyEncoder, "layer_network", layer_network)
    return counts


def fitted_blocks(session):
    return [block.name for block in session.state.model.classifier.support_.blocks]


def test_the_model_is_fitted_to_the_blocks_of_the_quality_and_again_when_another_is_chosen(open_session):
    session = open_session(HEAD, "fast")
    assert fill(session).quality == "fast" and fitted_blocks(session) == BLOCKS["fast"]
    for quality in ("best", "standard", "fast"):
        session.set_quality(quality)
        assert session.wait_until_idle(30)
        state = session.state
        assert (state.quality, state.error, state.revision) == (quality, "", session.project.contents.revision)
        assert fitted_blocks(session) == BLOCKS[quality]
        assert state.model.held_out is not None and len(state.curve.points) >= 2
        assert session.predict(Image.new("RGB", (9, 9), "red")).top[0][0] == "red"


def test_only_missing_features_are_computed(open_session, passes, tmp_path):
    session = open_session(HEAD, "standard", cache=tmp_path / "store.sqlite")
    fill(session)
    standard, second = (("final", "inner"), 32), (("final", "inner", "rare-patches"), 48)
    assert passes == {standard: 4}
    session.set_quality("best")
    assert session.wait_until_idle(30)
    assert passes == {standard: 4, second: 2 * 4}  # a picture and its mirror image
    for quality in ("standard", "best", "fast"):
        session.set_quality(quality)
        assert session.wait_until_idle(30)
    session = open_session(HEAD, "best", cache=tmp_path / "store.sqlite")  # from the store
    assert settle(session).model.shot_count == 4
    assert passes == {standard: 4, second: 8}


def test_the_old_model_answers_and_learns_until_the_features_are_there(open_session, monkeypatch):
    session = open_session(HEAD, "fast")
    fill(session)
    go_on, has_begun = threading.Event(), threading.Event()
    build = ToyEncoder.layer_network

    def layer_network(self, layers, size):
        network = build(self, layers, size)
        network.register_forward_pre_hook(lambda module, inputs: (has_begun.set(), go_on.wait(30))[1] and None)
        return network

    monkeypatch.setattr(ToyEncoder, "layer_network", layer_network)
    session.set_quality("best")
    assert has_begun.wait(30)
    state = session.state
    assert state.quality == "fast" and session.quality == "best"
    assert session.predict(Image.new("RGB", (9, 9), "blue")).top[0][0] == "blue"
    html = Panels(session).render_changed(Tab())["quality"]
    assert "Until “best” is computed, predictions come from “fast”." in html
    # A label that comes now is learned at once, before the features of the new quality are there.
    session.project.add_pictures("red", [noisy("red", 7)])
    seen = []
    publish = session._publish

    def watch(**changes):
        publish(**changes)
        if "model" in changes:
            seen.append((session.state.quality, session.state.model.shot_count))

    monkeypatch.setattr(session, "_publish", watch)
    session.notify_change()
    go_on.set()
    assert session.wait_until_idle(30)
    assert seen == [("fast", 5), ("best", 5)]


def test_the_quality_is_remembered_and_old_projects_open_with_the_default(open_session, tmp_path):
    assert open_session(HEAD, None).quality == "standard"
    open_session(HEAD, None).set_quality("best")
    settings = tmp_path / "p" / ".studio" / "settings.json"
    assert json.loads(settings.read_text()) == {"quality": "best"}
    assert open_session(HEAD, None).quality == "best"
    assert open_session(HEAD, "fast").quality == "fast"  # as the command line says
    assert open_session(HEAD, None).quality == "fast"
    for damaged in ("", "[1]", '{"quality": "good"}', '{"quality": 3}', "[" * 9000, "x" * 100_000):
        settings.write_text(damaged)
        assert open_session(HEAD, None).quality == "standard"
    with pytest.raises(InputError, match="quality must be fast, standard, best, but is 'good'"):
        open_session(HEAD, "good")


def test_pictures_are_compared_by_their_final_feature(open_session, monkeypatch):
    given = []
    select = "clipadapter.studio.session.select_for_labelling"
    monkeypatch.setattr(select, lambda final, *rest: (given.append(final), [0])[1])
    session = open_session(HEAD, "best")
    session.project.add_pictures(None, [noisy("red", i) for i in range(50, 60)])
    fill(session)
    features, contents = session._features, session.project.contents
    assert features.matrix(contents.unlabelled).shape == (10, features.encoder.info.dim)
    plain = create_encoder("toy")
    images = [Image.open(picture.path).convert("RGB") for picture in contents.unlabelled]
    expected = plain.encode_images(images).numpy()
    np.testing.assert_allclose(given[-1], expected, atol=1e-5)
    prediction = session.predict(contents.unlabelled[0].path)
    nearest = prediction.nearest[0]
    first = plain.encode_images([Image.open(session.project.root / nearest.source).convert("RGB")]).numpy()[0]
    cosine = first @ expected[0] / np.linalg.norm(first) / np.linalg.norm(expected[0])
    assert nearest.similarity == pytest.approx(cosine, abs=1e-4)


def test_a_saved_model_has_no_features_that_its_answers_dont_depend_on(open_session, tmp_path, monkeypatch):
    monkeypatch.setattr(NearestMean, "used_blocks", lambda self: ("final", "inner"))

    def restrict(self, before, after):
        width = sum(block.width for block in after)  # those of the test lie first
        self.means_, self.sums_ = self.means_[:, :width], self.sums_[:, :width]

    monkeypatch.setattr(NearestMean, "_restrict", restrict)
    session = open_session(HEAD, "best")
    fill(session)
    folder = session.save_model(str(tmp_path / "model"))
    saved = FewShotClassifier.load(folder, cache=None)
    assert [block.name for block in saved.encoder_.info.blocks] == ["final", "inner"]
    assert saved.predict([Image.new("RGB", (9, 9), "red")]) == ["red"]
    assert fitted_blocks(session) == BLOCKS["best"]
    assert session.state.is_saved(session.project.contents)
    session.set_quality("fast")
    assert session.wait_until_idle(30)
    assert not session.state.is_saved(session.project.contents)  # another model than the saved one


def test_a_head_that_reads_the_final_feature_has_no_choice(open_session):
    session = open_session("knn", "best")
    fill(session)
    assert fitted_blocks(session) == ["final"]
    reason = "The head 'knn' uses the same features of toy at each position: there is nothing to choose."
    html = Panels(session).render_changed(Tab())["quality"]
    assert "<fieldset disabled>" in html and "The head &#39;knn&#39; uses" in html and "checked" not in html
    with pytest.raises(InputError, match="nothing to choose$"):
        session.set_quality("fast")
    assert session.why_no_choice == reason
    assert "toy[final,inner]" in open_session(HEAD, encoder="toy[final,inner]").why_no_choice


def test_the_sentences_say_what_each_quality_costs():
    class OneSize(ToyEncoder):
        def layers(self):
            return {"final": 32}

        def second_size(self):
            return None

    toy = create_encoder("toy")
    options = quality_options(toy)
    assert list(options) == list(BLOCKS)
    # 1 pass at 32 pixels, and 2 at 48, whose cost is that of their pixels.
    assert relative_cost(toy, (), BLOCKS["best"]) == 1 + 2 * (48 / 32) ** 2
    assert all(words in options["best"] for words in ("48 pixels", "about 6 times", "such as defects"))
    _, same, still = quality_options(OneSize()).values()
    assert same.startswith("The same as fast") and still.startswith("The same as standard")


def test_several_encoders_are_read_at_each_quality(open_session):
    session = open_session(HEAD, encoder=["toy", "toy"])
    fill(session)
    assert fitted_blocks(session) == ["final", "toy/final"]
    assert "encoders toy, toy" in Panels(session).render_changed(Tab())["status"]
