"""How much of a picture a classifier looks at: blocks of features by quality, and what is left of them after a fit."""

import numpy as np
import pytest

from clipadapter import FewShotClassifier
from clipadapter.classifier.reader import Reader
from clipadapter.classifier.second_look import draw_trial_shots
from clipadapter.encoders.simclr_network import write_tensors
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.errors import EncoderUnavailableError, FingerprintError, InputError
from clipadapter.features import FeatureSet
from clipadapter.heads.nearest_mean import NearestMean
from clipadapter.pretraining.simclr import SimClrModel

NAMES = ["blue", "red"]
BLOCKS = {
    "fast": ["final"],
    "standard": ["final", "inner"],
    "best": ["final", "inner", "final@48+mirrored", "inner@48+mirrored", "rare-patches@48+mirrored"],
}


class Wide(NearestMean):
    """Reads all blocks, and says that it uses some of them."""

    reads = "all"
    used = ("final", "inner")

    def used_blocks(self):
        return self.used

    def _restrict(self, before, after):
        width = sum(block.width for block in after)  # those of the test lie first
        self.means_, self.sums_ = self.means_[:, :width], self.sums_[:, :width]


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    shade = rng.integers(0, 90, (6, 40, 40, 3), dtype=np.uint8)
    shade[:3, ..., 2] += 160
    shade[3:, ..., 0] += 160
    return list(shade), [NAMES[0]] * 3 + [NAMES[1]] * 3


def names(model):
    return [block.name for block in model.encoder_.info.blocks]


@pytest.mark.parametrize(
    ("encoder", "quality", "expected"),
    [
        *(("toy", quality, blocks) for quality, blocks in BLOCKS.items()),
        (["toy", "toy"], "fast", ["final", "toy/final"]),
        ("toy[final,final@48]", "standard", ["final", "final@48"]),
        (["toy[final,final@48]", "toy[final,inner]"], "auto", ["final", "final@48", "toy/final", "toy/inner"]),
    ],
)
def test_a_head_that_reads_all_blocks_gets_the_named_ones_or_those_of_the_quality(encoder, quality, expected):
    model = FewShotClassifier(encoder, Wide(), quality=quality, cache=None)
    model.prepare_encoder(Wide())
    assert names(model) == expected


def test_other_heads_read_the_final_feature_at_each_quality(pictures):
    model = FewShotClassifier("toy", "linear-probe", quality="best", cache=None).fit(*pictures)
    assert names(model) == ["final"] and model.support_.X.shape == (6, 32)


def test_blocks_that_a_fitted_head_does_not_use_are_dropped_and_come_back_with_the_next_fit(pictures):
    model = FewShotClassifier("toy", Wide(), quality="best", cache=None).fit(*pictures)
    assert names(model) == [block.name for block in model.support_.blocks] == ["final", "inner"]
    assert model.support_.provenance["encoder"] == "toy[final,inner]"
    assert model.head_.n_features_in_ == model.support_.X.shape[1] == model.encoder_.info.dim
    assert model.predict(pictures[0]) == pictures[1]
    model.head = type("All", (Wide,), {"used": tuple(BLOCKS["best"])})()
    assert names(model.fit(*pictures)) == BLOCKS["best"]


def test_a_block_that_the_logits_depend_on_cant_be_left_out(pictures):
    model = FewShotClassifier("toy", Wide(), cache=None).fit(*pictures)
    with pytest.raises(InputError, match="needs the block 'inner'"):
        model.head_.restrict_blocks(["final"])


def test_an_unknown_quality_is_refused():
    with pytest.raises(InputError, match="quality must be auto, fast, standard, best, but is 'good'"):
        FewShotClassifier("toy", quality="good")


def grey_noise(count, *, has_spot, seed=0):
    """Noise in grey; a spot is one pixel of another colour, no brighter and no darker than the others."""
    rng = np.random.default_rng(seed)
    pictures = np.repeat(rng.integers(0, 256, (count, 48, 48, 1), dtype=np.uint8), 3, axis=3)
    if has_spot:
        for picture in pictures:
            picture[tuple(rng.integers(4, 44, 2))] = (250, 5, 128)
    return list(pictures)


def quality(model):
    return dict(model.support_.provenance["quality"])


def test_a_model_looks_twice_where_only_the_second_look_tells_the_classes_apart_and_editing_keeps_it(tmp_path):
    pictures = [*grey_noise(6, has_spot=False), *grey_noise(6, has_spot=True, seed=1)]
    model = FewShotClassifier("toy", cache=None).fit(pictures, ["plain"] * 6 + ["spot"] * 6)
    chosen = quality(model)
    assert chosen["name"] == "best"
    assert chosen["why"].startswith("looks twice: ")
    # One pass at 32 pixels, and two more at 48 for the picture and its mirror image: 1 + 2 * (48 / 32)**2 = 5.5.
    assert "points better on 12 held-out shots; a prediction takes 6 times as long (--quality standard" in chosen["why"]
    assert "rare-patches@48+mirrored" in names(model)
    assert model.predict(grey_noise(8, has_spot=True, seed=2)).count("spot") >= 6
    folder = model.save(tmp_path / "model")
    assert "quality `best`: it looks twice: " in (folder / "README.md").read_text()
    loaded = FewShotClassifier.load(folder, cache=None)
    loaded.add_examples(grey_noise(2, has_spot=True, seed=3), ["spot"] * 2)
    assert (quality(loaded), names(loaded)) == (chosen, names(model))


def test_a_model_looks_once_where_held_out_shots_gain_nothing():
    pictures = grey_noise(12, has_spot=False)
    model = FewShotClassifier("toy", cache=None).fit(pictures, ["even", "odd"] * 6)
    assert quality(model)["name"] == "standard"
    assert quality(model)["why"].startswith("looks once: on 12 held-out shots a second look is ")
    assert not [name for name in names(model) if "@" in name]


def test_no_picture_is_read_twice_where_even_a_perfect_second_look_could_gain_too_little(monkeypatch):
    """Two of 24 held-out shots are wrong: 8.3 points, with a standard error of 5.8."""
    colours = (
        np.random.default_rng(0).integers(0, 40, (24, 32, 32, 3))
        + np.tile([[200, 20, 20], [20, 20, 200]], (12, 1))[:, None, None]
    )
    labels = ["red", "blue"] * 12
    labels[:2] = labels[1::-1]
    monkeypatch.setattr(Reader, "with_second_look", None)
    why = quality(FewShotClassifier("toy", cache=None).fit(list(colours.astype(np.uint8)), labels))["why"]
    assert why.startswith("looks once: 92% of 24 held-out shots are right, and too few are wrong to show a gain")


def test_without_a_trial_a_model_looks_once_and_says_why(pictures):
    images, labels = pictures
    model = FewShotClassifier("toy", cache=None)
    assert "100% of held-out shots are right" in quality(model.fit(images, labels))["why"]
    assert "most classes have one shot" in quality(model.fit([images[0], images[3]], NAMES))["why"]


def test_where_there_is_nothing_to_choose_no_reason_is_given(pictures, monkeypatch):
    for chosen in ("fast", "standard", "best"):
        model = FewShotClassifier("toy", quality=chosen, cache=None).fit(*pictures)
        assert quality(model) == {"name": chosen, "why": ""}
    assert "quality" not in FewShotClassifier("toy", "linear-probe", cache=None).fit(*pictures).support_.provenance
    monkeypatch.setattr(ToyEncoder, "second_size", lambda encoder: None)
    assert quality(FewShotClassifier("toy", cache=None).fit(*pictures)) == {"name": "standard", "why": ""}


@pytest.mark.parametrize(("classes", "shots", "expected"), [(3, 16, 10), (3, 2, 2), (30, 9, 4), (8, 1, 1)])
def test_the_trial_reads_at_most_32_shots_as_many_of_each_class(classes, shots, expected):
    labels = [f"class {k}" for k in range(classes) for _ in range(shots)]
    features = FeatureSet(np.zeros((len(labels), 1)), labels, sorted(set(labels)))
    drawn = features.take(draw_trial_shots(features, seed=0))
    assert len(drawn) <= 32 and {count for count in drawn.counts.values() if count} == {expected}
    assert len(set(drawn.y)) == min(classes, 8)


def test_a_model_whose_second_encoder_was_moved_is_opened_with_all_its_encoders_named_anew(pictures, tmp_path):
    for seed, name in enumerate(["here", "other"]):
        (tmp_path / name).mkdir()
        weights = SimClrModel(seed, "cpu", None, 0.1).tower.state_dict()
        write_tensors(tmp_path / name / "encoder.safetensors", weights, {"size": 32})
    here, moved, other = (f"simclr:{tmp_path / name}" for name in ("here", "moved", "other"))
    model = FewShotClassifier(["toy", here], "svl-adapter", cache=None)
    logits = model.fit(*pictures).logits(pictures[0])
    folder = model.save(tmp_path / "model")
    (tmp_path / "here").rename(tmp_path / "moved")
    with pytest.raises(EncoderUnavailableError, match="name all its encoders where they are now"):
        FewShotClassifier.load(folder, cache=None)
    loaded = FewShotClassifier.load(folder, encoder=["toy", moved], cache=None)
    np.testing.assert_allclose(loaded.logits(pictures[0]), logits, atol=1e-5)
    again = FewShotClassifier.load(loaded.save(tmp_path / "again"), encoder=["toy", moved], cache=None)
    np.testing.assert_allclose(again.logits(pictures[0]), logits, atol=1e-5)
    with pytest.raises(FingerprintError):
        FewShotClassifier.load(folder, encoder=["toy", other], cache=None)
    with pytest.raises(InputError, match="3 encoders are named, but the model was fitted with 2"):
        FewShotClassifier.load(folder, encoder=["toy", moved, other], cache=None)
