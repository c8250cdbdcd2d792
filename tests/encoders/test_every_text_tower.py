"""Every text tower that takes token embeddings keeps every rule, and a broken one is caught."""

import pytest
import torch

from clipadapter.encoders import create_encoder, open_text_tower, with_backend
from clipadapter.errors import InputError
from clipadapter.testing import TOWER_CHECKS, check_tower


@pytest.mark.parametrize("name", ["toy", "lite", "RN50", "ViT-B-32", "SigLIP", "tiny", "lite[final,toy/final]"])
def test_it_keeps_every_rule(name, opened):
    check_tower(opened(name))


def test_an_encoder_without_one_names_those_that_have_it(monkeypatch):
    toy = create_encoder("toy")
    monkeypatch.setattr(toy, "text_tower", lambda: None)
    with pytest.raises(InputError, match="encoder toy.* lite, open_clip"):
        open_text_tower(toy)


def test_a_backend_leaves_the_text_tower_unchanged(opened):
    plain = opened("tiny")
    assert open_text_tower(with_backend(plain, "torch", "bf16")).fingerprint == plain.info.fingerprint


def broken(tower, fault):
    """The tower with one fault."""
    encode = tower.encode
    if fault == "sees beyond":
        tower.encode = lambda embeddings, lengths: encode(embeddings, torch.full_like(lengths, embeddings.shape[1]))
    elif fault == "no gradient":
        tower.encode = lambda embeddings, lengths: encode(embeddings.detach(), lengths) + 0 * embeddings.sum()
    elif fault == "other feature":
        tower.encode = lambda embeddings, lengths: encode(embeddings, lengths) + 0.01
    elif fault == "forgets the beginning":
        tower.encode_after_prefix = lambda beginning, embeddings, lengths: encode(embeddings, lengths)
    elif fault == "no gradient in the beginning":
        begin = tower.encode_prefix
        tower.encode_prefix = lambda embeddings: begin(embeddings.detach() + 0 * embeddings)
    return tower


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("sees beyond", "check_padding_is_ignored"),
        ("no gradient", "check_gradients_reach_embeddings_only"),
        ("other feature", "check_embeddings_match_encode_text"),
        ("forgets the beginning", "check_prefix_can_be_encoded_once"),
        ("no gradient in the beginning", "check_prefix_can_be_encoded_once"),
    ],
)
def test_a_broken_tower_is_caught(fault, check, opened, monkeypatch):
    encoder = opened("tiny")
    given = encoder.text_tower
    monkeypatch.setattr(encoder, "text_tower", lambda: broken(given(), fault))
    with pytest.raises(AssertionError):
        next(each for each in TOWER_CHECKS if each.__name__ == check)(encoder)
    with pytest.raises(AssertionError, match="check_"):
        check_tower(encoder)
