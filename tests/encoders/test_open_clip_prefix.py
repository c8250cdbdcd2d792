"""A beginning that is run once gives what the whole text gives, and only where each part of the tower is known."""

import open_clip
import pytest
import torch
from torch import nn

from clipadapter.encoders import attention_layers
from clipadapter.encoders.open_clip_text import open_text_tower
from clipadapter.tuners.clip_lora import SeededDropout, initial_update

from .test_open_clip_text import CAUSAL, make

PLAIN = {name: text for name, text in CAUSAL.items() if name != "other blocks"} | {
    "scaled layers": {"ls_init_value": 0.5},
    "one layer": {"layers": 1},
}


def open_tower(text, kind=open_clip.CLIP, **more):
    return open_text_tower(make(text, kind, **more), open_clip.SimpleTokenizer(), "test", "cpu")


def gather_views(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outcome(tower, begin, rest, lengths, apart):
    """Features, and the gradients of a loss of theirs."""
    begin, rest = begin.clone().requires_grad_(), rest.clone().requires_grad_()
    if apart:
        features = tower.encode_after_prefix(tower.encode_prefix(begin), rest, lengths)
    else:
        whole = torch.cat([begin.expand(len(rest), *begin.shape), rest], dim=1)
        features = tower.encode(whole, lengths + len(begin))
    loss = (features * gather_views(*features.shape, seed=9)).sum()
    return features.detach(), *torch.autograd.grad(loss, (begin, rest), allow_unused=True, materialize_grads=True)


def assert_same(tower, p, length, lengths):
    rest = gather_views(len(lengths), length, tower.width, seed=1)
    given = (gather_views(p, tower.width), rest, torch.tensor(lengths))
    for result, expected in zip(outcome(tower, *given, True), outcome(tower, *given, False), strict=True):
        assert (result - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(("kind", "quick_gelu"), [(open_clip.CLIP, False), (open_clip.CustomTextCLIP, True)])
@pytest.mark.parametrize("text", PLAIN.values(), ids=PLAIN)
def test_features_and_gradients_with_a_prefix_are_those_of_full_texts(text, quick_gelu, kind):
    tower = open_tower(text, kind, quick_gelu=quick_gelu)
    assert len(tower.encode_prefix(gather_views(5, 32)).keys_values) == text.get("layers", 2)
    assert_same(tower, 5, 6, [3, 6, 1, 3])


@pytest.mark.parametrize(("p", "length"), [(0, 4), (1, 1), (76, 1), (1, 76)])
def test_prefix_and_text_may_have_any_length(p, length):
    assert_same(open_tower({}), p, length, [length, 1])


def test_padding_after_a_row_has_no_effect():
    tower = open_tower({})
    beginning, rest, lengths = tower.encode_prefix(gather_views(5, 32)), gather_views(2, 6, 32), torch.tensor([2, 4])
    expected = tower.encode_after_prefix(beginning, rest, lengths)
    rest[0, 2:], rest[1, 4:] = torch.nan, torch.inf
    torch.testing.assert_close(tower.encode_after_prefix(beginning, rest, lengths), expected, rtol=0, atol=0)


def test_half_precision_is_as_near_as_without_a_prefix():
    tower = open_tower({})
    given = (gather_views(5, 32), gather_views(4, 6, 32), torch.tensor([3, 6, 1, 3]))
    exact, *_ = outcome(tower, *given, False)
    with torch.autocast("cpu", torch.bfloat16):
        apart, whole = (outcome(tower, *given, way)[0] for way in (True, False))
    assert 0 < (apart - exact).norm() < 2 * (whole - exact).norm()


class Louder(nn.MultiheadAttention):
    def forward(self, *given, **named):
        mixed, shares = super().forward(*given, **named)
        return 2 * mixed, shares


def louder(network):
    for block in network.resblocks:
        block.attn.__class__ = Louder


def branched(network):
    layers = attention_layers(network)
    update = initial_update(layers, "qkv", 2, 1.0, torch.Generator().manual_seed(0), "cpu")
    update.b.normal_(generator=torch.Generator().manual_seed(1))
    update.attach(layers, SeededDropout(0.0, torch.Generator().manual_seed(0), "cpu"))


def merged(network):
    layers = attention_layers(network)
    update = initial_update(layers, "qkvo", 2, 1.0, torch.Generator().manual_seed(0), "cpu")
    update.b.normal_(generator=torch.Generator().manual_seed(1))
    update.merge(layers)


@pytest.mark.parametrize(("change", "known"), [(louder, 0), (branched, 0), (merged, 2)])
def test_a_changed_tower_is_used_in_its_present_state(change, known):
    tower = open_tower({})
    before = tower.encode_prefix(gather_views(5, 32))
    plain = tower.encode_after_prefix(before, gather_views(2, 6, 32), torch.tensor([6, 6]))
    change(tower.network())
    beginning = tower.encode_prefix(gather_views(5, 32))
    assert len(before.keys_values) == 2
    assert len(beginning.keys_values) == known
    changed = tower.encode_after_prefix(beginning, gather_views(2, 6, 32), torch.tensor([6, 6]))
    assert (changed - plain).norm() > 0.1 * plain.norm()
    assert_same(tower, 5, 6, [3, 6, 1, 3])


def test_other_blocks_are_run_by_the_model():
    tower = open_tower(CAUSAL["other blocks"])
    assert tower.encode_prefix(gather_views(5, 32)).keys_values == ()
    assert_same(tower, 5, 6, [3, 6, 1, 3])
