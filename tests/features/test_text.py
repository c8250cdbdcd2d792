import math
from dataclasses import replace

import numpy as np
import pytest

from clipadapter.encoders import open_blocks
from clipadapter.errors import InputError
from clipadapter.features import FeatureStore, encode_classes

PROMPTS = {"dog": ["a photo of a dog.", "a dog", "art of the dog."], "cat": ["a cat"], "wolf": ["a dog", "a wolf"]}


def by_loops(rows):
    """Normalise each row, mean, normalise."""
    units = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in rows]
    mean = [sum(column) / len(units) for column in zip(*units, strict=True)]
    length = math.sqrt(sum(value * value for value in mean))
    return [value / length for value in mean]


def test_a_class_is_the_ensemble_of_its_prompts_and_scale_and_bias_are_the_encoders(toy, monkeypatch):
    monkeypatch.setattr(toy, "info", replace(toy.info, logit_scale=7.5, logit_bias=-10.0))
    text = encode_classes(toy, PROMPTS)
    assert text.labels == ("dog", "cat", "wolf")
    assert (text.logit_scale, text.logit_bias) == (7.5, -10.0)
    for vector, rows, prompts in zip(text.embeddings, text.prompts, PROMPTS.values(), strict=True):
        encoded = [toy.encode_text([prompt])[0].tolist() for prompt in prompts]
        np.testing.assert_allclose(vector, by_loops(encoded), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(rows, [by_loops([row]) for row in encoded], rtol=1e-4, atol=1e-6)
    assert encode_classes(toy, {"cat": ["a cat"], "dog": ["a dog"]}).prompts is None  # not stored twice


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "at least one class"),
        ({"cat": ["a cat"], "dog": []}, "class 'dog' needs a list of one or more prompts"),
        ({"cat": "a cat"}, "class 'cat' needs a list of one or more prompts"),
    ],
)
def test_a_class_without_prompts_is_refused(toy, prompts, message):
    with pytest.raises(InputError, match=message):
        encode_classes(toy, prompts)


def test_stored_prompts_are_not_encoded_again(toy, monkeypatch):
    requested, encode_text = [], toy.encode_text
    expected = encode_classes(toy, PROMPTS).embeddings
    monkeypatch.setattr(toy, "encode_text", lambda texts: requested.append(list(texts)) or encode_text(texts))
    with FeatureStore(":memory:") as store:
        first = encode_classes(toy, PROMPTS, store)
        again = encode_classes(toy, PROMPTS, store)
        more = encode_classes(toy, {**PROMPTS, "fox": ["a fox", "a cat"]}, store)
    np.testing.assert_array_equal(first.embeddings, expected)  # stored, not computed again
    np.testing.assert_array_equal(again.embeddings, expected)  # stored, not computed again
    np.testing.assert_array_equal(more.embeddings[:3], expected)  # stored, not computed again
    # Every different prompt once, and in one call.
    assert requested == [["a photo of a dog.", "a dog", "art of the dog.", "a cat", "a wolf"], ["a fox"]]


def test_an_encoder_of_further_blocks_has_the_texts_of_the_encoder_itself_and_another_has_others(toy, monkeypatch):
    wide = open_blocks(toy, ["final", "inner", "final@48"])
    with FeatureStore(":memory:") as store:
        expected = encode_classes(toy, PROMPTS, store)
        monkeypatch.setattr(toy, "encode_text", None)
        # stored, not computed again
        np.testing.assert_array_equal(encode_classes(wide, PROMPTS, store).embeddings, expected.embeddings)
        monkeypatch.setattr(toy, "info", replace(toy.info, fingerprint="0" * 32))
        with pytest.raises(TypeError):
            encode_classes(toy, PROMPTS, store)
