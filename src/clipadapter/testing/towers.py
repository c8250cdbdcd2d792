"""What every text tower that takes token embeddings must do, one rule a check; see `clipadapter.towers`.

A check takes an open encoder that has one and raises AssertionError with a sentence if the rule does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clipadapter.encoders import Encoder, open_text_tower
from clipadapter.towers import TextTower

TOLERANCE = 1e-5
"""Distance between two features that must be the same, as a share of their length."""
TEXTS = ("a photo of a golden retriever.", "cat", "a photo of a cat on a sofa, beside a lamp.")


def check_embeddings_give_the_texts_features(encoder: Encoder) -> None:
    """The tower's feature of a text's embedded tokens is the encoder's feature of the text."""
    tower = open_text_tower(encoder)
    found, wanted = _features(tower, TEXTS), encoder.encode_text(TEXTS)
    _require(found.shape == (len(TEXTS), tower.dim), f"features are {tuple(found.shape)}")
    _same(found, wanted, "embedded tokens give other features than their texts")


def check_what_stands_behind_does_not_matter(encoder: Encoder) -> None:
    """Embeddings behind a row's length change nothing, nor do other rows."""
    tower = open_text_tower(encoder)
    embeddings, lengths = _embedded(tower, TEXTS)
    noise = torch.randn(len(TEXTS), 3, tower.width, generator=torch.Generator().manual_seed(0)).to(embeddings)
    more = torch.cat([embeddings, noise], dim=1)
    behind = torch.arange(more.shape[1]).to(more.device) >= lengths.to(more.device)[:, None]
    more = torch.where(behind[..., None], more + 3.0, more)
    with torch.inference_mode():
        _same(tower.encode(more, lengths), tower.encode(embeddings, lengths), "what stands behind a text changes it")
        alone = torch.cat([tower.encode(more[i : i + 1], lengths[i : i + 1]) for i in range(len(TEXTS))])
        _same(alone, tower.encode(embeddings, lengths), "other texts in the batch change a text's feature")


def check_gradients_reach_embeddings_only(encoder: Encoder) -> None:
    """A loss has a gradient in the embeddings that finite differences confirm; weights take none."""
    tower = open_text_tower(encoder)
    embeddings, lengths = _embedded(tower, TEXTS[1:2])
    embeddings = embeddings.clone().requires_grad_()
    goal = torch.randn(tower.dim, generator=torch.Generator().manual_seed(1)).to(embeddings)
    features = tower.encode(embeddings, lengths)
    (gradient,) = torch.autograd.grad(torch.nn.functional.cosine_similarity(features[0], goal, dim=0), embeddings)
    _require(bool(gradient.isfinite().all() and gradient.norm() > 0), "no gradient reaches the embeddings")
    step = 0.02 * embeddings.detach().norm() * gradient / gradient.norm()

    def value(sign: float) -> float:
        with torch.inference_mode():
            there = tower.encode(embeddings.detach() + sign * step, lengths)
            return float(torch.nn.functional.cosine_similarity(there[0], goal, dim=0))

    found, wanted = value(1.0) - value(-1.0), 2 * float((gradient * step).sum())
    _require(abs(found - wanted) < 0.1 * abs(wanted), f"a step along the gradient gains {found:.3g}, not {wanted:.3g}")


def check_a_beginning_may_be_run_by_itself(encoder: Encoder) -> None:
    """Texts that begin alike have the features and gradients that they have as a whole."""
    tower = open_text_tower(encoder)
    texts = tuple(f"a photo of {rest}" for rest in ("a cat.", "two golden retrievers on a lawn.", "a."))
    rows = tower.tokenize(texts)
    alike = next(i for i, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)
    whole, lengths = _embedded(tower, texts)
    begin, rest = whole[0, :alike].clone().requires_grad_(), whole[:, alike:].clone().requires_grad_()
    goal = torch.randn(len(texts), tower.dim, generator=torch.Generator().manual_seed(1)).to(whole)

    def run(apart: bool) -> tuple[Tensor, ...]:
        if apart:
            features = tower.encode_after_prefix(tower.encode_prefix(begin), rest, lengths - alike)
        else:
            features = tower.encode(torch.cat([begin.expand(len(texts), -1, -1), rest], dim=1), lengths)
        loss = (features * goal).sum()
        gradients = torch.autograd.grad(loss, (begin, rest), allow_unused=True, materialize_grads=True)
        return features.detach(), *(each.flatten()[None] for each in gradients)

    for what, found, wanted in zip(("features", "gradient", "gradient"), run(True), run(False), strict=True):
        _same(found, wanted, f"a beginning run by itself gives another {what} than the whole text")


def check_words_can_be_put_together(encoder: Encoder) -> None:
    """The tokens of a prompt are those of its beginning and of its end, between the same marks."""
    tower = open_text_tower(encoder)
    begin, end = tower.special_token_counts
    whole, first, last = tower.tokenize(["a photo of a cat.", "a photo of a", "cat."])
    together = [*first[: len(first) - end], *last[begin:]]
    _require(together == whole, f"'a photo of a' and 'cat.' are {together}, but together they are {whole}")


def check_long_texts_are_cut(encoder: Encoder) -> None:
    """No text has more tokens than the context."""
    tower = open_text_tower(encoder)
    (tokens,) = tower.tokenize(["word " * 2000])
    _require(0 < len(tokens) <= tower.context_length, f"a long text has {len(tokens)} tokens")


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
    for check in TOWER_CHECKS:
        try:
            check(encoder)
        except AssertionError as error:
            raise AssertionError(f"{encoder.info.name}, {check.__name__}: {error}") from error


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


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


def _same(found: Tensor, wanted: Tensor, sentence: str) -> None:
    gap = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    _require(bool((gap < TOLERANCE).all()), f"{sentence}: by {float(gap.max()):.2g} of their length")
