"""Text without padding, or after a prefix that is run once, has the same features; else the tower's way is taken."""

from functools import partial
from types import SimpleNamespace

import open_clip
import pytest
import torch
from torch import nn

from clipadapter.encoders import attention_layers, open_clip_text
from clipadapter.encoders.base import MAX_BATCH_TOKENS, length_batches
from clipadapter.encoders.open_clip import OpenClipEncoder
from clipadapter.encoders.open_clip_text import CausalTextTower, is_exact_without_padding, wrap_text_tower
from clipadapter.errors import InputError
from clipadapter.tuners.clip_lora import SeededDropout, attach_update, initial_update, merge_update

CONTEXT = 77
END = 49407
TEXTS = ["a photo of a cat.", "dog", "a photo of the large Chesapeake Bay retriever.", "cat dog " * 12, "word " * 100]
WIDE = {"vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
CAUSAL = {
    "plain": {},
    "end mark by name": {"pool_type": "eos", "eos_id": END},
    "linear projection": {"proj_bias": True},
    "no projection": {"proj_type": "none"},
    "other blocks": {"qk_norm": True, "scale_heads": True, "ls_init_value": 0.5},
}
OTHER = {
    "both directions": {"no_causal_mask": True},
    "last token": {"pool_type": "last"},
    "first token": {"pool_type": "first"},
}


def make(text, kind=open_clip.CLIP, **more):
    """A small model with weights large enough that every token a text can see changes its feature."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(embed_dim=32, vision_cfg=VISION, text_cfg=WIDE | text, **more).eval().requires_grad_(False)
        for name, weight in model.named_parameters():
            if not name.startswith("visual") and weight.ndim > 1:
                weight.normal_(std=0.3)
    return model


def encoder_of(model, tokenizer=open_clip.tokenize):
    encoder = object.__new__(OpenClipEncoder)
    encoder._model, encoder._tokenizer, encoder.device = model, tokenizer, "cpu"
    encoder.info = SimpleNamespace(fingerprint="test")
    return encoder


def is_causal(model):
    return isinstance(encoder_of(model).text_tower(), CausalTextTower)


def encode(model, texts, batch_size=256):
    """Features, and how many tokens each call of the transformer saw."""
    encoder, recorded = encoder_of(model), []
    parts = getattr(model, "text", model)
    hook = parts.transformer.register_forward_pre_hook(lambda _, given: recorded.append(tuple(given[0].shape[:2])))
    features = encoder.encode_text(texts, batch_size)
    hook.remove()
    return features, recorded


def own(model, texts):
    with torch.inference_mode():
        return model.encode_text(open_clip.tokenize(texts), normalize=False)


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize("text", CAUSAL.values(), ids=CAUSAL)
def test_features_without_padding_are_the_models_own(kind, text):
    model = make(text, kind)
    features, recorded = encode(model, TEXTS, batch_size=2)
    torch.testing.assert_close(features, own(model, TEXTS), atol=1e-5, rtol=1e-5)
    # By hand: start, words and end. "dog" has 3; "a photo of a cat." 8; the cut text is as long as the context.
    assert recorded[:2] == [(1, CONTEXT), (1, 3)]  # the comparison
    assert recorded[2] == (2, 8)
    assert recorded[-1][1] == CONTEXT and len(recorded) == 5


@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@pytest.mark.parametrize("text", OTHER.values(), ids=OTHER)
def test_towers_that_need_all_tokens_are_run_by_the_model(kind, text):
    model = make(text, kind)
    features, recorded = encode(model, TEXTS, batch_size=3)
    torch.testing.assert_close(features, own(model, TEXTS), rtol=1e-5, atol=1e-5)
    assert recorded == [(3, CONTEXT), (2, CONTEXT)]


def test_coca_siglip_and_towers_with_a_class_token_are_run_by_the_model(opened):
    assert not is_causal(make({"embed_cls": True}, open_clip.CustomTextCLIP))
    assert not is_causal(opened("SigLIP")._model)
    assert is_causal(opened("tiny")._model)
    text = {"embed_cls": True, "output_tokens": True, "context_length": 76}
    model = make(text, open_clip.CoCa, multimodal_cfg={"width": 32, "heads": 2, "layers": 1, "context_length": 76})
    tokenizer = partial(open_clip.tokenize, context_length=76)
    assert not is_causal(model)
    with torch.inference_mode():
        expected = model.encode_text(tokenizer(TEXTS[:3]), normalize=False)
    features = encoder_of(model, tokenizer).encode_text(TEXTS[:3])
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


def test_a_derived_model_runs_its_own_tower():
    class Louder(open_clip.CLIP):
        def encode_text(self, text, normalize=False):
            return 2 * super().encode_text(text, normalize)

    model = make({}, Louder)
    torch.testing.assert_close(encode(model, TEXTS)[0], own(model, TEXTS), rtol=1e-5, atol=1e-5)


def test_a_tower_with_other_features_is_run_by_the_model(monkeypatch):
    model = make({})
    encoder = encoder_of(model)
    tower = encoder.text_tower()
    model.attn_mask.zero_()  # not causal any more, which nobody noticed
    monkeypatch.setattr("clipadapter.encoders.open_clip.wrap_text_tower", lambda *_: tower)
    expected = own(model, TEXTS[:3])
    with torch.inference_mode():
        short = tower.encode_tokens(tower.tokenize(TEXTS[:3]))
        assert ((short - expected).norm(dim=1) > 1e-2 * expected.norm(dim=1)).all()
        assert not is_exact_without_padding(model, tower)
    for _ in range(2):
        torch.testing.assert_close(encoder.encode_text(TEXTS[:3]), expected, rtol=1e-5, atol=1e-5)


def test_the_encoder_removes_padding_and_keeps_the_order(opened):
    encoder = opened("tiny")
    texts = ["cat dog " * 12, "dog", "a photo of a cat.", "dog"]
    recorded = []
    transformer = encoder._model.transformer
    hook = transformer.register_forward_pre_hook(lambda _, given: recorded.append(given[0].shape[1]))
    result = encoder.encode_text(texts, batch_size=2)
    hook.remove()
    assert [length for length in recorded if length != CONTEXT][-2:] == [8, 26]
    torch.testing.assert_close(result, own(encoder._model, texts), rtol=1e-5, atol=1e-6)


def test_batches_have_texts_of_similar_length_and_few_tokens():
    lengths = torch.randint(3, 78, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    result = list(length_batches(lengths, 40))
    assert sorted(place for batch in result for place in batch) == list(range(300))
    ordered = [lengths[place] for batch in result for place in batch]
    assert ordered == sorted(lengths)
    assert all(len(batch) <= 40 and len(batch) * max(lengths[i] for i in batch) <= MAX_BATCH_TOKENS for batch in result)


def test_a_text_longer_than_a_batch_is_alone_and_a_batch_of_no_texts_is_refused():
    assert list(length_batches([MAX_BATCH_TOKENS + 1, 5, MAX_BATCH_TOKENS + 1], 9)) == [[1], [0], [2]]
    for size in (0, -1):
        with pytest.raises(InputError, match=f"batch_size must be 1 or more, but is {size}"):
            list(length_batches([1, 2], size))


WITH_PREFIX = CAUSAL | {"scaled layers": {"ls_init_value": 0.5}, "one layer": {"layers": 1}}


def open_tower(text, kind=open_clip.CLIP, **more):
    return wrap_text_tower(make(text, kind, **more), open_clip.SimpleTokenizer(), "test", "cpu")


@pytest.fixture
def layers_run(monkeypatch):
    """How many layers each prefix was run through by itself."""
    run, counts = open_clip_text.run_prefix, []

    def counting(blocks, hidden):
        counts.append(len(blocks))
        return run(blocks, hidden)

    monkeypatch.setattr(open_clip_text, "run_prefix", counting)
    return counts


def gather_views(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def outcome(tower, begin, rest, lengths, apart):
    """Features, and the gradients of a loss of theirs."""
    begin, rest = begin.clone().requires_grad_(), rest.clone().requires_grad_()
    if apart:
        features = tower.after_prefix(begin)(rest, lengths)
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
@pytest.mark.parametrize("text", WITH_PREFIX.values(), ids=WITH_PREFIX)
def test_features_and_gradients_with_a_prefix_are_those_of_full_texts(text, quick_gelu, kind, layers_run):
    """Blocks other than open_clip's usual ones are run by the model, without keys and values."""
    assert_same(open_tower(text, kind, quick_gelu=quick_gelu), 5, 6, [3, 6, 1, 3])
    assert layers_run == ([] if "qk_norm" in text else [text.get("layers", 2)])


@pytest.mark.parametrize(("p", "length"), [(0, 4), (1, 1), (76, 1), (1, 76)])
def test_prefix_and_text_may_have_any_length(p, length):
    assert_same(open_tower({}), p, length, [length, 1])


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
    a, b = initial_update(layers, "qkv", 2, torch.Generator().manual_seed(0))
    b.normal_(generator=torch.Generator().manual_seed(1))
    attach_update(layers, "qkv", a, b, 1.0, SeededDropout(0.0, torch.Generator().manual_seed(0), "cpu"))


def merged(network):
    layers = attention_layers(network)
    a, b = initial_update(layers, "qkvo", 2, torch.Generator().manual_seed(0))
    b.normal_(generator=torch.Generator().manual_seed(1))
    merge_update(layers, "qkvo", a, b, 1.0)


@pytest.mark.parametrize(("change", "known"), [(louder, []), (branched, []), (merged, [2])])
def test_a_changed_tower_is_used_in_its_present_state(change, known, layers_run):
    tower = open_tower({})
    plain = tower.after_prefix(gather_views(5, 32))(gather_views(2, 6, 32), torch.tensor([6, 6]))
    change(tower.network())
    changed = tower.after_prefix(gather_views(5, 32))(gather_views(2, 6, 32), torch.tensor([6, 6]))
    assert layers_run == [2, *known]
    assert (changed - plain).norm() > 0.1 * plain.norm()
    assert_same(tower, 5, 6, [3, 6, 1, 3])
