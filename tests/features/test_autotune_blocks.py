"""Several passes run in one backend and precision; int8 is calibrated by each pass's own squares."""

import numpy as np
import pytest
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.backends import Int8Calibration
from clipadapter.encoders import open_blocks, with_backend
from clipadapter.errors import EncoderUnavailableError
from clipadapter.features import autotune, choose_backend, restore_backend
from clipadapter.features.autotune import read_squares
from clipadapter.heads import create_head
from clipadapter.utils.pixels import PixelSpec

from ..tiny_encoder import TinyEncoder

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
    assert digests[1:] == ["", *(Int8Calibration(each).digest for each in squares)]
    assert chosen.info.int8_calibration_digest == "".join(digests)
    loaded = restore_backend(encoder, "int8", "onnxruntime", Int8Calibration(None, "".join(digests)))
    assert loaded.info.fingerprint == chosen.info.fingerprint
    images = [Image.open(path) for path in pictures]
    np.testing.assert_array_equal(loaded.encode_images(images), chosen.encode_images(images))
    assert loaded.block_fingerprints() == chosen.block_fingerprints()


def test_a_model_of_two_int8_passes_opens_again(pictures, tmp_path):
    encoder, labels = encoder_of("final", "other/final"), ["red", "blue"] * 6
    head = create_head("svl-adapter", epochs=2)
    model = FewShotClassifier(encoder, head, cache=None, backend="onnxruntime", precision="int8")
    model.fit(pictures, labels).save(tmp_path / "model")
    loaded = FewShotClassifier.load(tmp_path / "model", encoder=encoder_of("final", "other/final"), cache=None)
    assert [each.info.precision for each in loaded.encoder_.passes()] == ["int8", "int8"]
    np.testing.assert_array_equal(loaded.predict_proba(pictures), model.predict_proba(pictures))


def test_int8_that_was_calibrated_elsewhere_is_no_tower(pictures):
    encoder = encoder_of("final", "final@48")
    with pytest.raises(EncoderUnavailableError, match="was calibrated for int8"):
        restore_backend(encoder, "int8", "onnxruntime", Int8Calibration(None, 32 * "0"))


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
    monkeypatch.setattr(
        type(with_backend(encoder)),
        "encode_pixels",
        lambda self, pixels: autotune.torch.from_numpy(features[: len(pixels)]),
    )
    wrong = autotune.measure(with_backend(encoder), squares, reference)
    a, b = reference.features[:, :32].astype(float), features[:, :32].astype(float)
    cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert wrong.parity.min_cosine == pytest.approx(cosines.min(), abs=1e-6)
