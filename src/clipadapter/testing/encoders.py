"""What every encoder must do, one rule a check; for the package's own encoders and for those of plug-ins.

A check takes an open encoder and raises AssertionError with a sentence if the rule does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipadapter.backends import Calibration
from clipadapter.encoders import Encoder, create_encoder, with_backend
from clipadapter.errors import InputError

TOLERANCE = 1e-4
"""Distance between two features that must be the same, as a share of their length."""

TEXTS = ["a photo of a cat.", "a diagram", "Straße, naïve; 猫!"]
SIZES = [(300, 200), (37, 411), (16, 16), (1, 1)]


def check_info_is_complete(encoder: Encoder) -> None:
    """Every fact is there and makes sense."""
    info = encoder.info
    _require(bool(info.name and info.licence), "name and licence must not be empty")
    _require(info.dim > 0 and info.image_size > 0, "dim and image_size must be positive")
    _require(info.text_dim is None or 0 < info.text_dim < info.dim, "text_dim must be None or less than dim")
    _require(math.isfinite(info.logit_scale) and info.logit_scale > 0, "logit_scale must be positive")
    _require(info.logit_bias is None or math.isfinite(info.logit_bias), "logit_bias must be None or finite")


def check_fingerprint_is_hex(encoder: Encoder) -> None:
    """The fingerprint can stand in file names and keys, and is long enough never to meet another."""
    digits = encoder.info.fingerprint
    _require(len(digits) >= 32 and set(digits) <= set("0123456789abcdef"), f"{digits!r} is not 32 hex digits")


def check_opens_again_by_its_name(encoder: Encoder) -> None:
    """``info.name`` opens the same encoder: same fingerprint, same features. So do backend and precision beside it."""
    info = encoder.info
    again = create_encoder(info.name, device=encoder.device)
    if (info.backend, info.precision) != ("torch", "fp32"):
        calibration = Calibration(None, info.calibration) if info.calibration else None
        again = with_backend(again, info.backend, info.precision, calibration)
    _require(
        again.info.fingerprint == info.fingerprint,
        "the fingerprint changed from one opening to the next",
    )
    picture = [_picture((40, 30))]
    _same(
        again.encode_images(picture),
        encoder.encode_images(picture),
        "opened again, a picture's feature differs",
    )


def check_listing_needs_no_weights(encoder: Encoder) -> None:
    """The class lists what it can open, each once."""
    plain: Encoder = getattr(encoder, "plain", encoder)  # what a backend runs is listed by the encoder itself
    names = [line.name for line in type(plain).listing()]
    _require(len(names) > 0 and len(set(names)) == len(names), "listing() must name each encoder once")


def check_pixels_fit_the_tower(encoder: Encoder) -> None:
    """A picture of any size becomes (3, s, s) float32 on the CPU, or what else ``pixel_shape`` says.

    For a backend it becomes (s, s, 3) uint8.
    """
    dtype = torch.uint8 if _takes_squares(encoder) else torch.float32
    for picture in SIZES:
        pixels = encoder.preprocess(_picture(picture))
        _require(pixels.shape == encoder.pixel_shape, f"a {picture} picture became {tuple(pixels.shape)}")
        _require(pixels.dtype == dtype and pixels.device.type == "cpu", f"pixels must be {dtype} on the CPU")
        _require(bool(pixels.isfinite().all()), "pixels must be finite")


def check_square_is_not_resized(encoder: Encoder) -> None:
    """A picture of the tower's size keeps every pixel: only mean and deviation are applied."""
    size = encoder.info.image_size
    picture = _picture((size, size))
    if _takes_squares(encoder):
        kept = torch.equal(encoder.preprocess(picture), torch.from_numpy(np.array(picture)))
        _require(kept, "pixels of a picture of the tower's size changed")
        return
    if encoder.pixel_shape != (3, size, size):
        return  # the pixels of several towers, each of which keeps the rule itself
    black, white = (encoder.preprocess(Image.new("RGB", (size, size), name)) for name in ("black", "white"))
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    wanted = black + (white - black) * values
    worst = float((encoder.preprocess(picture) - wanted).abs().max())
    _require(worst < 1e-4, f"pixels of a picture of the tower's size moved by up to {worst:.3g}")


def check_extreme_shapes(encoder: Encoder) -> None:
    """A strip one pixel high or wide is no trouble."""
    images = [_picture((5000, 1)), _picture((1, 5000)), _picture((2, 999))]
    _require(bool(encoder.encode_images(images).isfinite().all()), "a strip has a feature that is not finite")


def check_grey_picture(encoder: Encoder) -> None:
    """A plain grey picture has a feature that can be normalised."""
    feature = encoder.encode_images([Image.new("RGB", (50, 50), (128, 128, 128))])
    _require(bool(feature.isfinite().all() and feature.norm() > 0), "a grey picture has no direction")


def check_preprocess_in_threads(encoder: Encoder) -> None:
    """Threads may preprocess at the same time."""
    images = [_picture((60 + i, 80), seed=i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(encoder.preprocess, images))
    alone = [encoder.preprocess(image) for image in images]
    _require(all(map(torch.equal, together, alone)), "preprocess gives other pixels when threads call it")


def check_picture_features_are_raw_float32(encoder: Encoder) -> None:
    """(n, d) float32 on the CPU, finite, not scaled to length one."""
    _raw(encoder.encode_images(_three()), 3, encoder.info.dim)


def check_text_features_are_raw_float32(encoder: Encoder) -> None:
    """(k, d) float32 on the CPU, finite, not scaled to length one."""
    _raw(encoder.encode_text(TEXTS), len(TEXTS), encoder.info.text_dim or encoder.info.dim)


def check_no_gradients(encoder: Encoder) -> None:
    """Features hold no graph, even where gradients are on."""
    with torch.enable_grad():
        features = [encoder.encode_images([_picture((32, 32))]), encoder.encode_text(TEXTS[:1])]
    _require(not any(each.requires_grad for each in features), "features must not ask for gradients")


def check_nothing_is_fine_for_pictures(encoder: Encoder) -> None:
    """No pictures give (0, d)."""
    none = encoder.preprocess(_picture((32, 32)))[None][:0]
    for features in (encoder.encode_images([]), encoder.encode_pixels(none)):
        _require(features.shape == (0, encoder.info.dim), f"no pictures gave {tuple(features.shape)}")


def check_wrong_pixels_are_refused(encoder: Encoder) -> None:
    """Pixels of another shape are an InputError."""
    size = encoder.info.image_size
    for shape in ((3, size, size), (1, 3, size + 1, size), (1, 1, size, size)):
        _refuses(partial(encoder.encode_pixels, torch.zeros(shape)), f"pixels of shape {shape}")


def check_wrong_texts_are_refused(encoder: Encoder) -> None:
    """No texts, or one text that is no list, are an InputError."""
    _refuses(partial(encoder.encode_text, []), "an empty list of texts")
    _refuses(partial(encoder.encode_text, "a cat"), "a text in place of a list")


def check_same_again(encoder: Encoder) -> None:
    """The same input gives the same feature."""
    images = _three()
    _same(
        encoder.encode_images(images),
        encoder.encode_images(images),
        "pictures got other features a second time",
    )
    _same(encoder.encode_text(TEXTS), encoder.encode_text(TEXTS), "texts got other features a second time")


def check_picture_batch_does_not_matter(encoder: Encoder) -> None:
    """A picture's feature does not depend on what else is in the batch."""
    images = _three()
    _same(
        encoder.encode_images(images, batch_size=1),
        encoder.encode_images(images),
        "the batch changes pictures",
    )


def check_text_batch_does_not_matter(encoder: Encoder) -> None:
    """A text's feature does not depend on what else is in the batch."""
    texts = [*TEXTS, "a much longer text, so that the others are padded to its length " * 2]
    _same(encoder.encode_text(texts, batch_size=1), encoder.encode_text(texts), "the batch changes texts")


def check_text_order_is_kept(encoder: Encoder) -> None:
    """Row i belongs to text i; a text that comes twice has equal rows."""
    texts = [TEXTS[2], TEXTS[0], TEXTS[2], TEXTS[1]]
    rows = encoder.encode_text(texts)
    _same(rows[[1, 3, 0]], encoder.encode_text(TEXTS), "rows are not in the order of the texts")
    _require(torch.equal(rows[0], rows[2]), "the same text twice has two different rows")


def check_long_text(encoder: Encoder) -> None:
    """A text longer than the context is cut, not refused."""
    _require(bool(encoder.encode_text(["word " * 2000]).isfinite().all()), "a long text has no finite feature")


def check_different_inputs_differ(encoder: Encoder) -> None:
    """Two pictures, and two texts, do not get one feature."""
    images = encoder.encode_images(_three())
    texts = encoder.encode_text(TEXTS[:2])
    _require(not torch.allclose(images[0], images[1]), "two pictures have one feature")
    _require(not torch.allclose(texts[0], texts[1]), "two texts have one feature")


def check_patch_features(encoder: Encoder) -> None:
    """Where parts of a picture have features, they are (h, w, d) float32 on the CPU, finite, without a graph."""
    with torch.enable_grad():
        patches = encoder.patch_features(_picture((64, 48)))
    if patches is not None:
        h, w = patches.shape[:2]
        _require(patches.shape == (h, w, encoder.info.dim), f"patches have shape {tuple(patches.shape)}")
        _raw(patches.flatten(0, 1), h * w, encoder.info.dim)
        _require(not patches.requires_grad, "patches must not ask for gradients")


def check_global_randomness_is_untouched(encoder: Encoder) -> None:
    """Encoding draws nothing from the global random stream."""
    before = torch.get_rng_state()
    encoder.encode_text(TEXTS[:1])
    encoder.encode_images([_picture((32, 32))])
    _require(torch.equal(before, torch.get_rng_state()), "the global random stream of torch moved on")


Check = Callable[[Encoder], None]

ENCODER_CHECKS: tuple[Check, ...] = tuple(value for name, value in list(globals().items()) if name.startswith("check_"))
"""All rules, in the order of this file."""


def check_encoder(encoder: Encoder) -> None:
    """Run every check.

    Args:
        encoder: an open encoder.

    Raises:
        AssertionError: at the first rule that does not hold, with its name.

    >>> check_encoder(create_encoder("toy"))
    """
    for check in ENCODER_CHECKS:
        try:
            check(encoder)
        except AssertionError as error:
            raise AssertionError(f"{encoder.info.name}, {check.__name__}: {error}") from error


def _picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of noise: any resizing shows."""
    stream = np.random.default_rng(seed)
    return Image.fromarray(stream.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _takes_squares(encoder: Encoder) -> bool:
    """Whether a backend does what comes after the resizing."""
    size = encoder.info.image_size
    return encoder.pixel_shape == (size, size, 3)


def _three() -> list[Image.Image]:
    # Always three or one at a time: each further batch size makes some networks plan anew, which takes a second.
    return [_picture((64, 48), seed=i) for i in range(3)]


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(sentence)


def _raw(features: Tensor, n: int, dim: int) -> None:
    _require(features.shape == (n, dim), f"features should be ({n}, {dim}), but are {tuple(features.shape)}")
    _require(
        features.dtype == torch.float32 and features.device.type == "cpu",
        "features must be float32 on the CPU",
    )
    _require(bool(features.isfinite().all()), "features must be finite")
    lengths = features.norm(dim=1)
    _require(not torch.allclose(lengths, torch.ones(n), atol=1e-3), "features are scaled to length one, not raw")


def _same(found: Tensor, wanted: Tensor, sentence: str) -> None:
    gap = (found - wanted).norm(dim=1) / wanted.norm(dim=1)
    _require(bool((gap < TOLERANCE).all()), f"{sentence}: by {float(gap.max()):.2g} of their length")


def _refuses(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except InputError:
        return
    raise AssertionError(f"{what} must be an InputError")
