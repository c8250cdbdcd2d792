"""The sentence bank: what every domain must have, and the sentences that are made of it."""

import json

import pytest

from clipadapter.data import class_prompts, read_descriptions
from clipadapter.data.sentences import get_domain, list_domains, make_sentences
from clipadapter.errors import InputError, UnknownNameError

DOMAINS = list_domains()
LONGEST_NAME = "a class name of about five words"
MOST_WORDS = 25
"""CLIP reads 77 tokens; one word is up to three."""


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: domain.name)
def test_a_domain_has_ten_to_twenty_different_templates_with_one_place_for_the_name(domain):
    assert 10 <= len(domain.sentences) <= 20
    assert len(set(domain.sentences)) == len(domain.sentences)
    assert all(sentence.count("{}") == 1 for sentence in domain.sentences)
    assert max(len(sentence.format(LONGEST_NAME).split()) for sentence in domain.sentences) <= MOST_WORDS
    assert domain.title


def test_every_class_gets_every_sentence_of_the_domains_once_and_a_before_a_vowel_is_an():
    made = make_sentences(["cup", "water_lilly"], ["objects", "plants", "objects"])
    templates = dict.fromkeys((*get_domain("objects").sentences, *get_domain("plants").sentences))
    assert made["water_lilly"] == [template.format("water lilly") for template in templates]
    assert list(made) == ["cup", "water_lilly"]
    assert make_sentences(["apple"], ["objects"])["apple"][0] == "a photo of an apple."
    assert make_sentences(["Otter"], ["animals"])["Otter"][0] == "a photo of an Otter, an animal."


def test_sentences_are_read_as_descriptions(tmp_path):
    made = make_sentences(["café", "pizza"], ["food"])
    path = tmp_path / "sentences.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    assert read_descriptions(path) == made
    assert class_prompts(["pizza", "café"], descriptions=made)["café"] == made["café"]


@pytest.mark.parametrize(
    ("names", "domains", "message"),
    [
        ([], ["food"], "at least one class name"),
        (["cup"], [], "at least one class name and one domain"),
        (["cup", "cup"], ["food"], "unique"),
        ([" "], ["food"], "not empty"),
        (["two\nlines"], ["food"], "line break"),
        (["cup"], ["texture"], "no domain is called 'texture'. Did you mean 'textures'"),
    ],
)
def test_wrong_names_are_refused(names, domains, message):
    with pytest.raises(UnknownNameError if domains == ["texture"] else InputError, match=message):
        make_sentences(names, domains)
