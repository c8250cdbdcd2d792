"""Pictures that are dark, white, empty, blurred, tiny or long, by their measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clipadapter.doctor.findings import Finding, Picture
from clipadapter.doctor.image_quality import Look

# Set on half of Caltech's training pictures: none of these is dark, white or blurred by the bounds, while all that were
# darkened to a fifth, and 99 of 100 that were blurred by 2.5 pixels at a short side of 256, are.
DARK = 70.0
"""The lightest of a dark picture, in grey of 255."""
BRIGHT = 190.0
"""The darkest of a picture that is nearly white."""
SPREAD = 30.0
"""Grey between darkest and lightest of an empty picture."""
BLURRY = 0.08
"""Sharpness of a blurred picture."""
LONG = 2.5
"""Long side by short side."""


def quality(pictures: Sequence[Picture], looks: Sequence[Look], square: int, squashes: bool) -> Iterator[Finding]:
    """Findings on single pictures; of dark, white, empty and blurred each picture gets the first only.

    Args:
        pictures: n.
        looks: of each.
        square: side of the encoder's square in pixels.
        squashes: whether the encoder squeezes long pictures instead of cutting them.
    """
    for picture, look in zip(pictures, looks, strict=True):
        yield from _light(picture, look)
        short, long = sorted((look.width, look.height))
        if 2 * short <= square:
            size = f"{look.width} x {look.height} pixels, the encoder's square has {square}"
            yield Finding("tiny", 1 - short / square, f"{picture.name}: {size}", (picture,))
        if long > LONG * short:
            lost = 1 - short / long
            what = f"is squeezed to {short / long:.0%} of its length" if squashes else f"{lost:.0%} of it is cut off"
            yield Finding("cut", lost, f"{picture.name}: {what}", (picture,))


def _light(picture: Picture, look: Look) -> Iterator[Finding]:
    spread = look.high - look.low
    if look.high < DARK:
        words = f"{picture.name}: its lightest is {look.high / 255:.0%} of white"
        yield Finding("dark", 1 - look.high / 255, words, (picture,))
    elif look.low > BRIGHT:
        words = f"{picture.name}: its darkest is {look.low / 255:.0%} of white"
        yield Finding("bright", look.low / 255, words, (picture,))
    elif spread < SPREAD:
        words = f"{picture.name}: lightest and darkest are {spread / 255:.0%} apart"
        yield Finding("flat", 1 - spread / 255, words, (picture,))
    elif look.sharpness < BLURRY:
        words = f"{picture.name}: sharpness {look.sharpness:.3f}, seldom below {BLURRY}"
        yield Finding("blurry", 1 - look.sharpness / BLURRY, words, (picture,))
