"""A backend and precision is taken by itself only if it is faster and near enough, of several passes too."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.encoders import create_encoder, open_blocks, with_backend
from clipadapter.errors import EncoderUnavailableError, InputError, MissingExtraError, UnknownNameError, install_command
from clipadapter.features import FeatureStore, ViewSpec, autotune, choose_backend, extract, restore_backend
from clipadapter.features.autotune import Measured, choose_measured, read_record, read_squares, source_key, write_record
from clipadapter.heads import create_head
from clipadapter.runtime.engines import cache_root, calibration_digest
from clipadapter.runtime.engines.openvino import OpenVinoBackend
from clipadapter.runtime.engines.parity import Parity, measure_parity
from clipadapter.utils.pixels import PixelSpec

from ..tiny_encoder import TinyEncoder

NEAR, FAR = Parity(0.9999, 0.9999, 1.0), Parity(0.9, 0.99, 1.0)
EXACT = Parity(1.0, 1.0, 1.0)


@pytest.fixture
def tiny():
    return TinyEncoder()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_few_pictures_are_encoded_by_the_plain_encoder(tiny, pictures, own_cache):
    assert choose_backend(tiny, pictures) is tiny
    assert not cache_root().exists()


def test_a_trial_must_not_take_longer_than_the_pictures(tiny, pictures, own_cache, monkeypatch):
    requested = []

    def measured(encoder, squares, *_):
        requested.append(len(squares))
        return Measured("torch", "fp32", 100.0, EXACT)

    monkeypatch.setattr(autotune, "measure", measured)
    # Two seconds and three times 64 pictures, at 100 pictures a second.
    assert choose_backend(tiny, [pictures[i % 12] for i in range(391)]) is tiny
    assert requested == [8]
    choose_backend(tiny, [pictures[i % 12] for i in range(392)])
    assert len(requested) > 2


def test_measurements_are_noted_and_saved(tiny, pictures, monkeypatch):
    monkeypatch.setattr(autotune, "is_trial_worthwhile", lambda *_: True)
    requested = []
    text = FewShotClassifier(tiny).encode_classes

    def class_text():
        requested.append(1)
        return text(["red", "blue"])

    first = choose_backend(tiny, pictures, text=class_text)
    assert requested
    if first is not tiny:  # a machine may be fastest with torch
        assert f"{first.info.backend} {first.info.precision}" in first.info.note
        assert "cosine to fp32" in first.info.note and "zero-shot" in first.info.note
    monkeypatch.setattr(autotune, "measure", None)  # anything measured again would fail
    again = choose_backend(tiny, pictures[:9], text=class_text)
    assert (again.info.backend, again.info.precision) == (first.info.backend, first.info.precision)


def test_other_pictures_are_measured_anew(opened, pictures, own_cache, monkeypatch):
    monkeypatch.setattr(autotune, "is_trial_worthwhile", lambda *_: True)
    choose_backend(opened("tiny"), pictures[:4])
    monkeypatch.setattr(autotune, "measure", None)
    with pytest.raises(TypeError):
        choose_backend(opened("tiny"), pictures[4:])


def test_stored_features_are_not_computed_in_another_precision(tiny, pictures, own_cache, monkeypatch):
    monkeypatch.setattr(autotune, "is_trial_worthwhile", lambda *_: True)
    monkeypatch.setattr(autotune, "measure", None)
    with FeatureStore(":memory:") as store:
        extract(tiny, pictures, store=store, views=ViewSpec())
        assert choose_backend(tiny, pictures, store=store) is tiny


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([("openvino", "bf16", 20, NEAR)], ("openvino", "bf16")),
        ([("openvino", "bf16", 20, FAR)], ("torch", "fp32")),
        ([("openvino", "bf16", 10.5, NEAR)], ("torch", "fp32")),  # not worth being less exact
        ([("openvino", "fp32", 10.5, EXACT)], ("openvino", "fp32")),
        ([("openvino", "bf16", 20, NEAR), ("openvino", "int8", 40, NEAR)], ("openvino", "int8")),
        ([("openvino", "bf16", 20, NEAR), ("openvino", "int8", 40, FAR)], ("openvino", "bf16")),
        ([("openvino", "bf16", 20, Parity(0.9999, 0.9999, 0.9))], ("torch", "fp32")),  # other answers
    ],
)
def test_the_fastest_candidate_that_is_near_enough_is_chosen(others, expected):
    measured = [Measured("torch", "fp32", 10, EXACT), *(Measured(*each) for each in others)]
    result = choose_measured(measured, is_precision_fixed=False)
    assert (result.backend, result.precision) == expected
    fixed = [Measured("torch", "bf16", 10, FAR), Measured("openvino", "bf16", 20, FAR)]
    assert choose_measured(fixed, is_precision_fixed=True).backend == "openvino"


def test_cosines_and_answers_are_those_of_a_plain_loop():
    rng = np.random.default_rng(1)
    one, text = rng.standard_normal((7, 5)).astype(np.float32), rng.standard_normal((3, 5))
    two = one + 0.5 * rng.standard_normal((7, 5)).astype(np.float32)

    def cosine(a, b):
        return float(a @ b / (a @ a) ** 0.5 / (b @ b) ** 0.5)

    cosines = [cosine(a, b) for a, b in zip(one, two, strict=True)]
    answers = [[max(range(3), key=lambda k, row=row: cosine(row, text[k])) for row in rows] for rows in (one, two)]
    same = [a == b for a, b in zip(*answers, strict=True)]
    result = measure_parity(one, two, text)
    assert result.min_cosine == pytest.approx(min(cosines), abs=1e-6)
    assert result.mean_cosine == pytest.approx(sum(cosines) / 7, abs=1e-6)
    assert result.agreement == pytest.approx(sum(same) / 7)


def test_a_sample_hardly_changes_when_pictures_are_added(tmp_path):
    names = [f"class/{i}.jpg" for i in range(1610)]
    before, after = (sorted(source_key(name, i) for i, name in enumerate(some))[:64] for some in (names[:1600], names))
    assert len(set(before) & set(after)) >= 60
    write_record(tmp_path / "record.json", before, [Measured("torch", "fp32", 10, EXACT)])
    assert read_record(tmp_path / "record.json", after) == [Measured("torch", "fp32", 10, EXACT)]
    assert read_record(tmp_path / "record.json", sorted(source_key(f"other/{i}.jpg", i) for i in range(64))) == []


def test_a_fixed_backend_and_precision_need_no_measurement(tiny, pictures, monkeypatch):
    monkeypatch.setattr(autotune, "measure", None)
    result = choose_backend(tiny, pictures, backend="openvino", precision="bf16").info
    assert (result.backend, result.precision) == ("openvino", "bf16")


def test_what_can_not_run_is_refused_with_the_reason(tiny, pictures, tmp_path):
    toy = create_encoder("toy")
    assert choose_backend(toy, pictures) is toy
    (tmp_path / "no.png").write_text("no picture")
    for encoder, sources, wish, error, words in (
        (toy, pictures, {"backend": "openvino"}, InputError, "toy can't be converted"),
        (tiny, pictures, {"backend": "openvin"}, UnknownNameError, "Did you mean 'openvino'"),
        (tiny, pictures, {"precision": "fp16"}, InputError, "auto, fp32, bf16, int8"),
        (tiny, pictures, {"backend": "torch", "precision": "int8"}, InputError, "Torch .* runs fp32, bf16, not int8"),
        (tiny, [tmp_path / "no.png"], {"backend": "openvino", "precision": "int8"}, InputError, "int8 needs pictures"),
    ):
        with pytest.raises(error, match=words):
            choose_backend(encoder, sources, **wish)


def test_a_backend_that_is_not_installed_names_its_extra(tiny, pictures, own_cache, monkeypatch):
    monkeypatch.setattr(OpenVinoBackend, "missing_package", classmethod(lambda cls: "openvino"))
    with pytest.raises(MissingExtraError, match=re.escape(install_command("openvino"))):
        choose_backend(tiny, pictures, backend="openvino")
    assert choose_backend(tiny, pictures) is tiny
    monkeypatch.setattr(autotune, "is_trial_worthwhile", lambda *_: True)
    result = choose_backend(tiny, pictures, backend="torch")
    assert result.info.backend == "torch"
    assert install_command("openvino") in result.info.note


def test_a_saved_model_remembers_its_precision(opened, pictures, tmp_path):
    labels = ["red", "blue"] * 6
    model = FewShotClassifier(opened("tiny").info.name, "linear-probe", precision="bf16").fit(pictures, labels)
    model.save(tmp_path / "model")
    loaded = FewShotClassifier.load(tmp_path / "model")
    assert loaded.encoder_.info.precision == "bf16"
    fingerprint = loaded.encoder_.info.fingerprint
    assert fingerprint == model.encoder_.info.fingerprint != opened("tiny").info.fingerprint
    np.testing.assert_allclose(loaded.logits(pictures), model.logits(pictures), rtol=1e-5)
    exact = FewShotClassifier.load(tmp_path / "model", precision="fp32")
    assert exact.encoder_.info.precision == "fp32"
    assert exact.predict(pictures) == labels


def test_an_int8_model_predicts_in_fp32_where_its_tower_is_missing(tiny, pictures, own_cache, tmp_path):
    labels, options = ["red", "blue"] * 6, {"backend": "onnxruntime", "precision": "int8"}
    model = FewShotClassifier(tiny, "linear-probe", cache=None, **options).fit(pictures, labels)
    assert model.encoder_.info.int8_calibration_digest
    model.save(tmp_path / "model")

    def load():
        return FewShotClassifier.load(tmp_path / "model", encoder=TinyEncoder(), cache=None)

    assert load().encoder_.info.precision == "int8"
    shutil.rmtree(cache_root())
    loaded = load()
    assert loaded.encoder_.info.precision == "fp32"
    assert "fitted on int8 features" in loaded.encoder_.info.note
    assert loaded.predict(pictures) == labels


def test_many_pictures_to_predict_choose_the_backend_but_not_the_precision(opened, pictures, own_cache, monkeypatch):
    name = opened("tiny").info.name
    model = FewShotClassifier(name, "linear-probe", cache=None).fit(pictures, ["red", "blue"] * 6)
    assert model.encoder_.info.backend == "torch"  # few pictures
    expected, tried = model.classify(pictures), set()

    def measured(encoder, squares, *_):
        tried.add(encoder.info.precision)
        return Measured(encoder.info.backend, "fp32", 200.0 if encoder.info.backend == "openvino" else 100.0, EXACT)

    monkeypatch.setattr(autotune, "measure", measured)
    monkeypatch.setattr(autotune, "is_trial_worthwhile", lambda n_images, rate: n_images > 11)
    model.classify(pictures[:11])
    assert model.encoder_.info.backend == "torch"
    predictions = list(model.iter_predictions(pictures))
    assert (model.encoder_.info.backend, tried) == ("openvino", {"fp32"})
    for one, other in zip(predictions, expected, strict=True):
        assert one.label == other.label and one.probability == pytest.approx(other.probability, rel=1e-3)


OTHER = PixelSpec(48, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def encoder_of(*names):
    """The toy runs in torch only, and lies between two towers that backends run."""
    return open_blocks(TinyEncoder(), names, [TinyEncoder("other", OTHER, 1)])


def test_each_pass_is_calibrated_by_its_own_squares(pictures):
    encoder = encoder_of("final", "toy/final", "inner@48", "other/final")
    chosen = choose_backend(encoder, pictures, backend="onnxruntime", precision="int8")
    assert [each.info.precision for each in chosen.passes()] == ["int8", "fp32", "int8", "int8"]
    digests = [each.info.int8_calibration_digest for each in chosen.passes()]
    squares = [read_squares(pictures, PixelSpec(size, (0.5,) * 3, (0.5,) * 3)) for size in (48, 48)]
    assert digests[1:] == ["", *(calibration_digest(each) for each in squares)]
    assert chosen.info.int8_calibration_digest == "".join(digests)
    loaded = restore_backend(encoder, "int8", "onnxruntime", "".join(digests))
    assert loaded.info.fingerprint == chosen.info.fingerprint
    images = [Image.open(path) for path in pictures]
    # the same sums in the same order
    np.testing.assert_array_equal(loaded.encode_images(images), chosen.encode_images(images))
    assert loaded.block_fingerprints() == chosen.block_fingerprints()
    with pytest.raises(InputError, match="is calibrated for int8 by `choose_backend`"):
        with_backend(encoder, "onnxruntime", "int8", squares[0])
    with pytest.raises(EncoderUnavailableError, match="was calibrated for int8"):  # elsewhere
        restore_backend(encoder_of("final", "final@48"), "int8", "onnxruntime", 32 * "0")


def test_a_model_of_two_int8_passes_opens_again(pictures, tmp_path):
    encoder, labels = encoder_of("final", "other/final"), ["red", "blue"] * 6
    head = create_head("svl-adapter", epochs=2)
    model = FewShotClassifier(encoder, head, cache=None, backend="onnxruntime", precision="int8")
    model.fit(pictures, labels).save(tmp_path / "model")
    loaded = FewShotClassifier.load(tmp_path / "model", encoder=encoder_of("final", "other/final"), cache=None)
    assert [each.info.precision for each in loaded.encoder_.passes()] == ["int8", "int8"]
    # the same sums in the same order
    np.testing.assert_array_equal(loaded.predict_proba(pictures), model.predict_proba(pictures))


@pytest.mark.parametrize("is_near", [True, False])
def test_all_passes_run_in_fp32_if_one_is_not_near_enough(is_near, pictures, monkeypatch):
    encoder = encoder_of("final", "other/final")
    first = with_backend(encoder.passes()[0], "torch", "bf16")
    monkeypatch.setattr(autotune, "measure_parity", lambda *_, **__: autotune.Parity(*((1, 1) if is_near else (0, 0))))
    chosen = autotune._run_like(first, encoder, pictures, is_precision_fixed=False)
    assert [each.info.precision for each in chosen.passes()] == ["bf16" if is_near else "fp32"] * 2
    exact = encoder.encode_images([Image.open(path) for path in pictures]).numpy()
    features = chosen.encode_images([Image.open(path) for path in pictures]).numpy()
    np.testing.assert_allclose(features, exact, atol=1e-6 if not is_near else 0.05)


def test_the_worst_block_decides_whether_a_precision_is_near_enough(pictures, monkeypatch):
    """The inner layer has few, large columns: together with the others its error would not be seen."""
    encoder = open_blocks(TinyEncoder(), ["final", "inner"])
    squares = read_squares(pictures, encoder.tower().pixels)
    reference = autotune.measure(with_backend(encoder), squares)
    features = reference.features.copy()
    features[:, :32] = features[:, :32][:, ::-1]
    wrong_features = autotune.torch.from_numpy(features)
    monkeypatch.setattr(type(with_backend(encoder)), "encode_pixels", lambda _, pixels: wrong_features[: len(pixels)])
    wrong = autotune.measure(with_backend(encoder), squares, reference)
    a, b = reference.features[:, :32].astype(float), features[:, :32].astype(float)
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert wrong.parity.min_cosine == pytest.approx(cosines.min(), abs=1e-6)
