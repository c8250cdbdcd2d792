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


def test_a_class_is_the_ensemble_of_its_prompts(toy):
    text = encode_classes(toy, PROMPTS)
    assert text.labels == ("dog", "cat", "wolf")
    for vector, prompts in zip(text.embeddings, PROMPTS.values(), strict=True):
        rows = [toy.encode_text([prompt])[0].tolist() for prompt in prompts]
        np.testing.assert_allclose(vector, by_loops(rows), rtol=1e-4, atol=1e-6)


def test_scale_and_bias_are_the_encoders(toy, monkeypatch):
    monkeypatch.setattr(toy, "info", replace(toy.info, logit_scale=7.5, logit_bias=-10.0))
    text = encode_classes(toy, PROMPTS)
    assert (text.logit_scale, text.logit_bias) == (7.5, -10.0)


def test_every_different_prompt_is_encoded_once_in_one_call(toy, monkeypatch):
    calls, encode_text = [], toy.encode_text
    monkeypatch.setattr(toy, "encode_text", lambda texts: calls.append(list(texts)) or encode_text(texts))
    encode_classes(toy, PROMPTS)
    assert calls == [["a photo of a dog.", "a dog", "art of the dog.", "a cat", "a wolf"]]


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
    np.testing.assert_array_equal(first.embeddings, expected)
    np.testing.assert_array_equal(again.embeddings, expected)
    np.testing.assert_array_equal(more.embeddings[:3], expected)
    assert requested == [["a photo of a dog.", "a dog", "art of the dog.", "a cat", "a wolf"], ["a fox"]]


def test_an_encoder_of_further_blocks_has_the_texts_of_the_encoder_itself(toy, monkeypatch):
    wide = open_blocks(toy, ["final", "inner", "final@48"])
    with FeatureStore(":memory:") as store:
        expected = encode_classes(toy, PROMPTS, store)
        monkeypatch.setattr(toy, "encode_text", None)
        np.testing.assert_array_equal(encode_classes(wide, PROMPTS, store).embeddings, expected.embeddings)


def test_another_encoder_has_other_texts(toy, monkeypatch):
    with FeatureStore(":memory:") as store:
        encode_classes(toy, PROMPTS, store)
        monkeypatch.setattr(toy, "info", replace(toy.info, fingerprint="0" * 32))
        monkeypatch.setattr(toy, "encode_text", None)
        with pytest.raises(TypeError):
            encode_classes(toy, PROMPTS, store)


def test_single_prompts_are_unit_rows_of_each_class(toy):
    text = encode_classes(toy, PROMPTS)
    assert [rows.shape[0] for rows in text.prompts] == [3, 1, 2]
    for rows, prompts in zip(text.prompts, PROMPTS.values(), strict=True):
        for row, prompt in zip(rows, prompts, strict=True):
            np.testing.assert_allclose(row, by_loops([toy.encode_text([prompt])[0].tolist()]), rtol=1e-4, atol=1e-6)


def test_one_prompt_a_class_is_not_stored_twice(toy):
    assert encode_classes(toy, {"cat": ["a cat"], "dog": ["a dog"]}).prompts is None
