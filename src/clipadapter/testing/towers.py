"""Conformance checks of text towers that take token embeddings, one rule per check; see `clipadapter.utils.towers`.

A check takes an open encoder with such a tower and raises AssertionError with a message if the rule does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clipadapter.encoders import Encoder, open_text_tower
from clipadapter.testing.assertions import require, require_equal_features, run_checks
from clipadapter.utils.towers import TextTower

TOLERANCE = 1e-5  # largest distance between two features that must be equal, relative to their length
TEXTS = ("a photo of a golden retriever.", "cat", "a photo of a cat on a sofa, beside a lamp.")


def check_embeddings_match_encode_text(encoder: Encoder) -> None:
    """The tower's features of embedded tokens equal the encoder's features of the texts."""
    tower = open_text_tower(encoder)
    features, expected = _features(tower, TEXTS), encoder.encode_text(TEXTS)
    require(features.shape == (len(TEXTS), tower.dim), f"features are {tuple(features.shape)}")
    _same(features, expected, "embedded tokens have other features than their texts")


def check_padding_is_ignored(encoder: Encoder) -> None:
    """Features depend neither on embeddings after a row's length nor on other rows."""
    tower = open_text_tower(encoder)
    embeddings, lengths = _embedded(tower, TEXTS)
    noise = torch.randn(len(TEXTS), 3, tower.width, generator=torch.Generator().manual_seed(0)).to(embeddings)
    padded = torch.cat([embeddings, noise], dim=1)
    is_padding = torch.arange(padded.shape[1]).to(padded.device) >= lengths.to(padded.device)[:, None]
    padded = torch.where(is_padding[..., None], padded + 3.0, padded)
    with torch.inference_mode():
        expected = tower.encode(embeddings, lengths)
        _same(tower.encode(padded, lengths), expected, "padding changes the features of a text")
        single = torch.cat([tower.encode(padded[i : i + 1], lengths[i : i + 1]) for i in range(len(TEXTS))])
        _same(single, expected, "other texts in the batch change the features of a text")


def check_gradients_reach_embeddings_only(encoder: Encoder) -> None:
    """The gradient of a loss in the embeddings agrees with finite differences; weights have none."""
    tower = open_text_tower(encoder)
    embeddings, lengths = _embedded(tower, TEXTS[1:2])
    embeddings = embeddings.clone().requires_grad_()
    target = torch.randn(tower.dim, generator=torch.Generator().manual_seed(1)).to(embeddings)
    features = tower.encode(embeddings, lengths)
    (gradient,) = torch.autograd.grad(torch.nn.functional.cosine_similarity(features[0], target, dim=0), embeddings)
    require(bool(gradient.isfinite().all() and gradient.norm() > 0), "no gradient reaches the embeddings")
    step = 0.02 * embeddings.detach().norm() * gradient / gradient.norm()

    def value(sign: float) -> float:
        with torch.inference_mode():
            moved = tower.encode(embeddings.detach() + sign * step, lengths)
            return float(torch.nn.functional.cosine_similarity(moved[0], target, dim=0))

    gain, expected = value(1.0) - value(-1.0), 2 * float((gradient * step).sum())
    require(
        abs(gain - expected) < 0.1 * abs(expected), f"a step along the gradient gains {gain:.3g}, not {expected:.3g}"
    )


def check_prefix_can_be_encoded_once(encoder: Encoder) -> None:
    """A shared prefix that is encoded once gives the features and gradients of whole texts."""
    tower = open_text_tower(encoder)
    texts = tuple(f"a photo of {name}" for name in ("a cat.", "two golden retrievers on a lawn.", "a."))
    rows = tower.tokenize(texts)
    prefix_length = next(i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)
    embeddings, lengths = _embedded(tower, texts)
    prefix = embeddings[0, :prefix_length].clone().requires_grad_()
    suffixes = embeddings[:, prefix_length:].clone().requires_grad_()
    target = torch.randn(len(texts), tower.dim, generator=torch.Generator().manual_seed(1)).to(embeddings)

    def run(uses_prefix: bool) -> tuple[Tensor, ...]:
        if uses_prefix:
            features = tower.encode_after_prefix(tower.encode_prefix(prefix), suffixes, lengths - prefix_length)
        else:
            features = tower.encode(torch.cat([prefix.expand(len(texts), -1, -1), suffixes], dim=1), lengths)
        loss = (features * target).sum()
        gradients = torch.autograd.grad(loss, (prefix, suffixes), allow_unused=True, materialize_grads=True)
        return features.detach(), *(each.flatten()[None] for each in gradients)

    for what, values, expected in zip(("features", "gradient", "gradient"), run(True), run(False), strict=True):
        _same(values, expected, f"a prefix that is encoded once changes the {what}")


def check_tokens_concatenate(encoder: Encoder) -> None:
    """The tokens of a prompt are those of its two halves, between the same special tokens."""
    tower = open_text_tower(encoder)
    n_start, n_end = tower.special_token_counts
    expected, first, last = tower.tokenize(["a photo of a cat.", "a photo of a", "cat."])
    joined = [*first[: len(first) - n_end], *last[n_start:]]
    require(joined == expected, f"'a photo of a' and 'cat.' have the tokens {joined}, but the whole prompt {expected}")


def check_long_texts_are_truncated(encoder: Encoder) -> None:
    """No text has more tokens than the context."""
    tower = open_text_tower(encoder)
    (tokens,) = tower.tokenize(["word " * 2000])
    require(0 < len(tokens) <= tower.context_length, f"a long text has {len(tokens)} tokens")


Check = Callable[[Encoder], None]

TOWER_CHECKS: tuple[Check, ...] = tuple(value for name, value in list(globals().items()) if name.startswith("check_"))
"""All rules, in the order of this file."""


def check_tower(encoder: Encoder) -> None:
    """Run every check.

    Args:
        encoder: an open encoder with a text tower.

    Raises:
        AssertionError: at the first rule that does not hold, with its name.
        InputError: if the encoder has no text tower that takes token embeddings.
    """
    run_checks(TOWER_CHECKS, encoder)


def _embedded(tower: TextTower, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Embeddings (k, l, w) and lengths (k,)."""
    tokens = [torch.tensor(each, dtype=torch.int64) for each in tower.tokenize(texts)]
    ids = pad_sequence(tokens, batch_first=True)
    with torch.inference_mode():
        embeddings = tower.embed(ids)
    return embeddings.clone(), torch.tensor([len(each) for each in tokens])


def _features(tower: TextTower, texts: Sequence[str]) -> Tensor:
    with torch.inference_mode():
        return tower.encode(*_embedded(tower, texts)).float().cpu()


_same = partial(require_equal_features, tolerance=TOLERANCE)
