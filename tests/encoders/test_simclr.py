"""The encoder that `clipadapter simclr` makes: every rule for pictures, and no text."""

import numpy as np
import pytest

from clipadapter import FewShotClassifier
from clipadapter.encoders import create_encoder
from clipadapter.encoders.simclr_network import write_tensors
from clipadapter.errors import EncoderUnavailableError, InputError
from clipadapter.pretraining.simclr import SimClrModel
from clipadapter.testing import check_encoder

from .expected_layers import outputs_of, pixels_of, statistics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An encoder that has learned nothing."""
    root = tmp_path_factory.mktemp("en+coder")
    write_tensors(root / "encoder.safetensors", SimClrModel(0, "cpu", None, 0.1).tower.state_dict(), {"size": 32})
    return root


@pytest.fixture(scope="module")
def encoder(folder):
    return create_encoder(f"simclr:{folder}")


def test_it_keeps_every_rule_of_encoders_and_class_text_beside_it_is_absent(encoder):
    check_encoder(encoder)
    assert FewShotClassifier(encoder, cache=None).encode_classes(["cat", "dog"]).absent == ("cat", "dog")


def test_a_relative_folder_gets_an_absolute_name_and_other_weights_another_fingerprint(
    folder, encoder, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder.parent)
    assert create_encoder(f"simclr:{folder.name}").info.name == f"simclr:{folder}"
    write_tensors(tmp_path / "encoder.safetensors", SimClrModel(1, "cpu", None, 0.1).tower.state_dict(), {"size": 32})
    assert create_encoder(f"simclr:{tmp_path}").info.fingerprint != encoder.info.fingerprint


def test_a_folder_without_an_encoder_is_refused(tmp_path):
    with pytest.raises(InputError, match="names no folder"):
        create_encoder("simclr")
    with pytest.raises(EncoderUnavailableError, match="to make one: clipadapter simclr PICTURES --out"):
        create_encoder(f"simclr:{tmp_path}")
    (tmp_path / "encoder.safetensors").write_bytes(b"no tensors")
    with pytest.raises(EncoderUnavailableError, match="holds no encoder"):
        create_encoder(f"simclr:{tmp_path}")
    write_tensors(tmp_path / "encoder.safetensors", {}, {"size": 32})
    with pytest.raises(EncoderUnavailableError, match="holds no encoder"):
        create_encoder(f"simclr:{tmp_path}")


@pytest.mark.parametrize("size", [32, 64])
def test_inner_layers_are_statistics_of_the_four_stages(size, encoder, picture):
    pixels = pixels_of(encoder, size, [picture(90, 60)])
    tower = encoder.tower().module
    final, maps = outputs_of(tower, [tower.layer1, tower.layer2, tower.layer3, tower.layer4], pixels)
    means, maxima, deviations = zip(*(np.split(statistics(each), 3, axis=1) for each in maps), strict=True)
    # The mean of the last stage is the final feature.
    expected = {"final": [final], "inner-mean": means[:-1], "inner-max": maxima, "inner-std": deviations}
    columns = np.concatenate([part for parts in expected.values() for part in parts], axis=1)
    assert encoder.layers() == {name: sum(part.shape[1] for part in parts) for name, parts in expected.items()}
    assert encoder.second_size() == 64
    np.testing.assert_allclose(encoder.layer_network(list(expected), size)(pixels), columns, rtol=1e-3, atol=1e-3)
