"""Conformance checks of encoders and their text towers, one rule per check, also for authors of plug-ins.

A check takes an open encoder and raises AssertionError with a message if the rule does not hold. Encoders of pictures
only (`Encoder.has_text`) are not asked for texts, but must refuse them. The rules of text towers that take token
embeddings (`clipadapter.utils.towers`) come last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from clipadapter.encoders import Encoder, create_encoder, open_text_tower, with_backend
from clipadapter.errors import InputError
from clipadapter.utils.towers import TextTower

Check = Callable[[Encoder], None]
TOLERANCE, TOWER_TOLERANCE = 1e-4, 1e-5
"""Largest distance between two features that must be equal, relative to their length."""
TEXTS = ["a photo of a cat.", "a diagram", "Straße, naïve; 猫!"]
TOWER_TEXTS = ("a photo of a golden retriever.", "cat", "a photo of a cat on a sofa, beside a lamp.")
SIZES = [(300, 200), (37, 411), (16, 16), (1, 1)]


def check_info_is_complete(encoder: Encoder) -> None:
    """Every field of `info` is set and valid; the class lists the encoders that it can open, each once."""
    info, digits = encoder.info, encoder.info.fingerprint
    require(bool(info.name and info.licence), "name and licence must not be empty")
    require(info.dim > 0 and info.image_size > 0, "dim and image_size must be positive")
    require(math.isfinite(info.logit_scale) and info.logit_scale > 0, "logit_scale must be positive")
    require(info.logit_bias is None or math.isfinite(info.logit_bias), "logit_bias must be None or finite")
    # It is a part of file names and keys.
    require(len(digits) >= 32 and set(digits) <= set("0123456789abcdef"), f"{digits!r} is not 32 hex digits")
    plain: Encoder = getattr(encoder, "plain", encoder)  # a backend wraps the encoder that has the list
    names = [line.name for line in type(plain).listing()]
    require(len(names) > 0 and len(set(names)) == len(names), "listing() must name each encoder once")


def check_opens_again_by_its_name(encoder: Encoder) -> None:
    """``info.name``, with backend and precision, opens the same encoder: same fingerprint, same features."""
    info = encoder.info
    again = create_encoder(info.name, device=encoder.device)
    if (info.backend, info.precision) != ("torch", "fp32"):
        again = with_backend(again, info.backend, info.precision, info.int8_calibration_digest or None)
    is_same = again.info.fingerprint == info.fingerprint
    require(is_same, "the fingerprint is another one when the encoder is opened again")
    features, expected = (each.encode_images([_picture((40, 30))]) for each in (again, encoder))
    _same(features, expected, "the features of a picture differ when the encoder is opened again")


def check_pixels_fit_the_tower(encoder: Encoder) -> None:
    """A picture of any size becomes pixels of ``pixel_shape`` on the CPU: float32, or uint8 squares for a backend."""
    dtype = torch.uint8 if _takes_squares(encoder) else torch.float32
    for size in SIZES:
        pixels = encoder.preprocess(_picture(size))
        require(pixels.shape == encoder.pixel_shape, f"a {size} picture became {tuple(pixels.shape)}")
        require(pixels.dtype == dtype and pixels.device.type == "cpu", f"pixels must be {dtype} on the CPU")
        require(bool(pixels.isfinite().all()), "pixels must be finite")


def check_square_is_not_resized(encoder: Encoder) -> None:
    """A picture of the tower's size keeps every pixel. Only normalisation is applied."""
    size = encoder.info.image_size
    picture = _picture((size, size))
    if _takes_squares(encoder):
        is_unchanged = torch.equal(encoder.preprocess(picture), torch.from_numpy(np.array(picture)))
        require(is_unchanged, "pixels of a picture of the tower's size changed")
        return
    if encoder.pixel_shape != (3, size, size):
        return  # pixels of several towers, each of which is checked by itself
    black, white = (encoder.preprocess(Image.new("RGB", (size, size), name)) for name in ("black", "white"))
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    expected = black + (white - black) * values
    max_error = float((encoder.preprocess(picture) - expected).abs().max())
    require(max_error < 1e-4, f"pixels of a picture of the tower's size changed by up to {max_error:.3g}")


def check_extreme_pictures(encoder: Encoder) -> None:
    """A strip one pixel high or wide has finite features, and that of a grey picture can be normalised."""
    images = [_picture((5000, 1)), _picture((1, 5000)), Image.new("RGB", (50, 50), (128, 128, 128))]
    features = encoder.encode_images(images)
    require(bool(features.isfinite().all()), "features of a strip or of a grey picture are not finite")
    require(bool(features[-1].norm() > 0), "the feature of a grey picture can't be normalised")


def check_preprocess_in_threads(encoder: Encoder) -> None:
    """Several threads can preprocess at the same time."""
    images = [_picture((60 + i, 80), seed=i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        in_threads = list(pool.map(encoder.preprocess, images))
    expected = [encoder.preprocess(image) for image in images]
    require(all(map(torch.equal, in_threads, expected)), "preprocess gives other pixels in threads")


def check_features_are_raw_float32(encoder: Encoder) -> None:
    """Features are (n, d) float32 on the CPU, finite, not scaled to length one."""
    _check_raw(encoder.encode_images(_three_pictures()), 3, encoder.info.dim)
    for features in _encode_texts(encoder, TEXTS):
        _check_raw(features, len(TEXTS), encoder.info.text_dim)


def check_no_gradients(encoder: Encoder) -> None:
    """Features have no autograd graph, even if gradients are enabled."""
    with torch.enable_grad():
        features = [encoder.encode_images([_picture((32, 32))]), *_encode_texts(encoder, TEXTS[:1])]
    require(not any(each.requires_grad for each in features), "features must not require gradients")


def check_empty_list_of_pictures(encoder: Encoder) -> None:
    """No pictures give features (0, d)."""
    no_pixels = encoder.preprocess(_picture((32, 32)))[None][:0]
    for features in (encoder.encode_images([]), encoder.encode_pixels(no_pixels)):
        require(features.shape == (0, encoder.info.dim), f"no pictures gave {tuple(features.shape)}")


def check_wrong_inputs_are_refused(encoder: Encoder) -> None:
    """Pixels of another shape, no texts, a string in place of a list, and texts without a tower raise InputError."""
    size = encoder.info.image_size
    for shape in ((3, size, size), (1, 3, size + 1, size), (1, 1, size, size)):
        _require_input_error(partial(encoder.encode_pixels, torch.zeros(shape)), f"pixels of shape {shape}")
    _require_input_error(partial(encoder.encode_text, []), "an empty list of texts")
    _require_input_error(partial(encoder.encode_text, "a cat"), "a string instead of a list")
    if not encoder.has_text:
        require(encoder.text_tower() is None, "an encoder with has_text = False must have no text tower")
        _require_input_error(partial(encoder.encode_text, TEXTS), "texts for an encoder with has_text = False")


def check_repeatable(encoder: Encoder) -> None:
    """Equal inputs give equal features."""
    images = _three_pictures()
    _same(encoder.encode_images(images), encoder.encode_images(images), "pictures have other features the second time")
    for first, second in zip(_encode_texts(encoder, TEXTS), _encode_texts(encoder, TEXTS), strict=True):
        _same(first, second, "texts have other features the second time")


def check_batch_does_not_matter(encoder: Encoder) -> None:
    """The feature of a picture or text does not depend on the rest of the batch."""
    images, texts = _three_pictures(), [*TEXTS, "a much longer text, so that the others are padded to its length " * 2]
    alone, together = encoder.encode_images(images, batch_size=1), encoder.encode_images(images)
    _same(alone, together, "features of pictures depend on the batch")
    if encoder.has_text:
        _same(encoder.encode_text(texts, 1), encoder.encode_text(texts), "features of texts depend on the batch")


def check_text_order(encoder: Encoder) -> None:
    """Row i belongs to text i. Equal texts have equal rows."""
    if not encoder.has_text:
        return
    texts = [TEXTS[2], TEXTS[0], TEXTS[2], TEXTS[1]]
    rows = encoder.encode_text(texts)
    _same(rows[[1, 3, 0]], encoder.encode_text(TEXTS), "rows are not in the order of the texts")
    require(torch.equal(rows[0], rows[2]), "equal texts have different rows")


def check_long_text(encoder: Encoder) -> None:
    """A text longer than the context is truncated, not refused."""
    for features in _encode_texts(encoder, ["word " * 2000]):
        require(bool(features.isfinite().all()), "the features of a long text are not finite")


def check_different_inputs_differ(encoder: Encoder) -> None:
    """Different pictures have different features, and so have different texts."""
    images = encoder.encode_images(_three_pictures())
    require(not torch.allclose(images[0], images[1]), "two pictures have equal features")
    for texts in _encode_texts(encoder, TEXTS[:2]):
        require(not torch.allclose(texts[0], texts[1]), "two texts have equal features")


def check_patch_features(encoder: Encoder) -> None:
    """Patch features, if the encoder has them, are (h, w, d) float32 on the CPU, finite, without a graph."""
    with torch.enable_grad():
        patches = encoder.patch_features(_picture((64, 48)))
    if patches is not None:
        h, w = patches.shape[:2]
        require(patches.shape == (h, w, encoder.info.dim), f"patches have shape {tuple(patches.shape)}")
        _check_raw(patches.flatten(0, 1), h * w, encoder.info.dim)
        require(not patches.requires_grad, "patches must not require gradients")


def check_global_randomness_is_untouched(encoder: Encoder) -> None:
    """Encoding does not use the global random generator."""
    before = torch.get_rng_state()
    _encode_texts(encoder, TEXTS[:1])
    encoder.encode_images([_picture((32, 32))])
    require(torch.equal(before, torch.get_rng_state()), "torch's global random state changed")


ENCODER_CHECKS: tuple[Check, ...] = tuple(value for name, value in list(globals().items()) if name.startswith("check_"))
"""All rules of encoders, in the order of this file."""


def check_embeddings_match_encode_text(encoder: Encoder) -> None:
    """The tower's features of embedded tokens equal the encoder's features of the texts."""
    tower = open_text_tower(encoder)
    with torch.inference_mode():
        features = tower.encode(*_embedded(tower, TOWER_TEXTS)).float().cpu()
    require(features.shape == (len(TOWER_TEXTS), tower.dim), f"features are {tuple(features.shape)}")
    _same_text(features, encoder.encode_text(TOWER_TEXTS), "embedded tokens have other features than their texts")


def check_padding_is_ignored(encoder: Encoder) -> None:
    """Features depend neither on embeddings after a row's length nor on other rows."""
    tower = open_text_tower(encoder)
    embeddings, lengths = _embedded(tower, TOWER_TEXTS)
    noise = torch.randn(len(TOWER_TEXTS), 3, tower.width, generator=torch.Generator().manual_seed(0)).to(embeddings)
    padded = torch.cat([embeddings, noise], dim=1)
    is_padding = torch.arange(padded.shape[1]).to(padded.device) >= lengths.to(padded.device)[:, None]
    padded = torch.where(is_padding[..., None], padded + 3.0, padded)
    with torch.inference_mode():
        expected = tower.encode(embeddings, lengths)
        _same_text(tower.encode(padded, lengths), expected, "padding changes the features of a text")
        single = torch.cat([tower.encode(padded[i : i + 1], lengths[i : i + 1]) for i in range(len(TOWER_TEXTS))])
        _same_text(single, expected, "other texts in the batch change the features of a text")


def check_gradients_reach_embeddings_only(encoder: Encoder) -> None:
    """The gradient of a loss in the embeddings agrees with finite differences; weights have none."""
    tower = open_text_tower(encoder)
    embeddings, lengths = _embedded(tower, TOWER_TEXTS[1:2])
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
            features = tower.after_prefix(prefix)(suffixes, lengths - prefix_length)
        else:
            features = tower.encode(torch.cat([prefix.expand(len(texts), -1, -1), suffixes], dim=1), lengths)
        loss = (features * target).sum()
        gradients = torch.autograd.grad(loss, (prefix, suffixes), allow_unused=True, materialize_grads=True)
        return features.detach(), *(each.flatten()[None] for each in gradients)

    for what, values, expected in zip(("features", "gradient", "gradient"), run(True), run(False), strict=True):
        _same_text(values, expected, f"a prefix that is encoded once changes the {what}")


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


TOWER_CHECKS: tuple[Check, ...] = tuple(
    value for name, value in list(globals().items()) if name.startswith("check_") and value not in ENCODER_CHECKS
)
"""All rules of text towers, in the order of this file."""


def check_encoder(encoder: Encoder) -> None:
    """Run every check of encoders.

    Args:
        encoder: an open encoder.

    Raises:
        AssertionError: at the first rule that does not hold, with its name.

    >>> check_encoder(create_encoder("toy"))
    """
    _run_checks(ENCODER_CHECKS, encoder)


def check_tower(encoder: Encoder) -> None:
    """Run every check of text towers.

    Args:
        encoder: an open encoder with a text tower.

    Raises:
        AssertionError: at the first rule that does not hold, with its name.
        InputError: if the encoder has no text tower that takes token embeddings.
    """
    _run_checks(TOWER_CHECKS, encoder)


def _run_checks(checks: Sequence[Check], encoder: Encoder) -> None:
    for check in checks:
        try:
            check(encoder)
        except AssertionError as error:
            raise AssertionError(f"{encoder.info.name}, {check.__name__}: {error}") from error


def require(condition: bool, message: str) -> None:
    """Fail with a message unless a condition holds."""
    if not condition:
        raise AssertionError(message)


def _same(features: Tensor, expected: Tensor, message: str, tolerance: float = TOLERANCE) -> None:
    """Fail with a message unless each row differs by at most a part ``tolerance`` of its length."""
    distance = (features - expected).norm(dim=1) / expected.norm(dim=1)
    require(bool((distance < tolerance).all()), f"{message}: by {float(distance.max()):.2g} of their length")


_same_text = partial(_same, tolerance=TOWER_TOLERANCE)


def _picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of noise, in which any resizing is visible."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _encode_texts(encoder: Encoder, texts: list[str]) -> list[Tensor]:
    """The features of texts as the only item of a list; no item if the encoder has no text tower."""
    return [encoder.encode_text(texts)] if encoder.has_text else []


def _takes_squares(encoder: Encoder) -> bool:
    """Whether the pixels are squares that a backend normalises."""
    size = encoder.info.image_size
    return encoder.pixel_shape == (size, size, 3)


def _three_pictures() -> list[Image.Image]:
    # Only batches of three and one: some networks compile for each new batch size, which takes a second.
    return [_picture((64, 48), seed=i) for i in range(3)]


def _check_raw(features: Tensor, n: int, dim: int) -> None:
    require(features.shape == (n, dim), f"features should be ({n}, {dim}), but are {tuple(features.shape)}")
    require(features.dtype == torch.float32 and features.device.type == "cpu", "features must be float32 on the CPU")
    require(bool(features.isfinite().all()), "features must be finite")
    lengths = features.norm(dim=1)
    require(not torch.allclose(lengths, torch.ones(n), atol=1e-3), "features are scaled to length one, not raw")


def _require_input_error(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except InputError:
        return
    raise AssertionError(f"{what} must raise InputError")


def _embedded(tower: TextTower, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Embeddings (k, l, w) and lengths (k,)."""
    tokens = [torch.tensor(each, dtype=torch.int64) for each in tower.tokenize(texts)]
    ids = pad_sequence(tokens, batch_first=True)
    with torch.inference_mode():
        embeddings = tower.embed(ids)
    return embeddings.clone(), torch.tensor([len(each) for each in tokens])
