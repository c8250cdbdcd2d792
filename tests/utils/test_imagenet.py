import sys
from pathlib import Path

import pytest
import timm

from clipadapter.utils import imagenet
from clipadapter.utils.imagenet import clip_names, wordnet_names


@pytest.fixture
def _no_cached_tables():
    wordnet_names.cache_clear()
    yield
    wordnet_names.cache_clear()


@pytest.mark.parametrize(
    ("read", "first", "last", "distinct"),
    [
        (wordnet_names, "tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue", 999),
        (clip_names, "tench", "toilet paper", 1000),
    ],
)
def test_each_source_names_the_thousand_classes(read, first, last, distinct):
    names = list(read().values())
    assert (len(names), names[0], names[999], len(set(names))) == (1000, first, last, distinct)


def test_names_of_clip_are_in_the_order_of_the_synsets():
    names = clip_names()
    assert list(names) == sorted(names)
    assert (names["n01440764"], names["n15075141"]) == ("tench", "toilet paper")
    assert (names["n03773504"], names["n04008634"]) == ("missile", "projectile")
    assert (names["n04355933"], names["n04356056"]) == ("sunglass", "sunglasses")


def test_names_of_wordnet_are_those_of_timm(monkeypatch, _no_cached_tables):
    info = timm.data.ImageNetInfo("imagenet-1k")
    expected = dict(zip(info.label_names(), map(info.index_to_description, range(1000)), strict=True))
    monkeypatch.setitem(sys.modules, "timm.data", None)  # the tables are read without the library
    assert wordnet_names() == expected
    monkeypatch.undo()
    wordnet_names.cache_clear()
    monkeypatch.setattr(imagenet, "TIMM_TABLES", Path("moved"))  # without its tables the library is asked
    assert wordnet_names() == expected and list(wordnet_names()) == list(expected)
