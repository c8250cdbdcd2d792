"""Every text tower that takes token embeddings keeps every rule, and a broken one is caught."""

from functools import partial

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


@pytest.mark.parametrize(
    ("check", "method", "fault"),
    [
        ("padding_is_ignored", "encode", lambda own, rows, n: own(rows, torch.full_like(n, rows.shape[1]))),
        ("gradients_reach_embeddings_only", "encode", lambda own, rows, n: own(rows.detach(), n) + 0 * rows.sum()),
        ("embeddings_match_encode_text", "encode", lambda own, rows, n: own(rows, n) + 0.01),
        ("prefix_can_be_encoded_once", "after_prefix", lambda own, rows: own.__self__.encode),
        ("prefix_can_be_encoded_once", "after_prefix", lambda own, rows: own(rows.detach() + 0 * rows)),
    ],
)
def test_a_broken_tower_is_caught(check, method, fault, opened, monkeypatch):
    encoder = opened("tiny")
    given = encoder.text_tower

    def broken():
        tower = given()
        setattr(tower, method, partial(fault, getattr(tower, method)))
        return tower

    monkeypatch.setattr(encoder, "text_tower", broken)
    with pytest.raises(AssertionError):
        next(each for each in TOWER_CHECKS if each.__name__ == f"check_{check}")(encoder)
    with pytest.raises(AssertionError, match="check_"):
        check_tower(encoder)
