import sys
from pathlib import Path

import pytest
import timm

from clipadapter.utils import imagenet
from clipadapter.utils.imagenet import imagenet_names, imagenet_synsets


@pytest.fixture
def _no_cached_tables():
    imagenet._lemmas_by_synset.cache_clear()
    yield
    imagenet._lemmas_by_synset.cache_clear()


@pytest.mark.parametrize(
    ("source", "first", "last", "distinct"),
    [
        ("wordnet", "tench, Tinca tinca", "toilet tissue, toilet paper, bathroom tissue", 999),
        ("torchvision", "tench", "toilet tissue", 1000),
        ("clip", "tench", "toilet paper", 1000),
    ],
)
def test_each_source_names_the_thousand_classes(source, first, last, distinct):
    names = imagenet_names(source)
    assert (len(names), names[0], names[999], len(set(names))) == (1000, first, last, distinct)


def test_names_of_clip_are_in_the_order_of_the_synsets():
    names = dict(zip(imagenet_synsets(), imagenet_names("clip"), strict=True))
    assert list(names) == sorted(names)
    assert (names["n01440764"], names["n15075141"]) == ("tench", "toilet paper")
    assert (names["n03773504"], names["n04008634"]) == ("missile", "projectile")
    assert (names["n04355933"], names["n04356056"]) == ("sunglass", "sunglasses")


def test_names_of_wordnet_are_those_of_timm(monkeypatch, _no_cached_tables):
    info = timm.data.ImageNetInfo("imagenet-1k")
    expected = tuple(info.index_to_description(i) for i in range(1000))
    monkeypatch.setitem(sys.modules, "timm.data", None)  # the tables are read without the library
    assert imagenet_names("wordnet") == expected
    monkeypatch.undo()
    imagenet._lemmas_by_synset.cache_clear()
    monkeypatch.setattr(imagenet, "TIMM_TABLES", Path("moved"))  # without its tables the library is asked
    assert imagenet_names("wordnet") == expected
    assert imagenet_synsets() == tuple(info.label_names())
