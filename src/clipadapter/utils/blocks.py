"""Blocks: the named columns of a feature matrix.

An encoder looks at a picture in several ways: its final feature, the layers before it, the picture at a second
resolution, or another encoder. Each way is a block of columns. The name of a block says where it comes from::

    final                                the feature that class text is compared with
    stage3                               an inner layer of the same pass through the image tower
    final@384                            the same at 384 pixels
    final+mirrored                       the mean of the features of the picture and of its mirror image
    timm:vit_small_patch14_dinov2/final  a feature of another encoder

Heads read ``final`` only, unless they say otherwise (`clipadapter.heads.Head.reads`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from clipadapter.errors import InputError, brief

FINAL = "final"  # the block that class text is compared with: always the first one
UNPROJECTED = "unprojected"  # the layer before the last, linear step of an image tower
RARE_PATCHES = "rare-patches"
"""What differs most from the rest of the picture, such as small defects; see `clipadapter.encoders.rare_patches`."""
MIRRORED = "+mirrored"
MAX_BLOCKS = 64  # a saved model is untrusted input, and each of its blocks may open an encoder
MAX_BLOCK_WIDTH = 1 << 20
NAME_PATTERN = re.compile(
    r"(?:(?P<encoder>.+)/)?(?P<layer>[a-z][a-z0-9-]*)(?:@(?P<size>[1-9]\d{0,4}))?(?P<view>\+mirrored)?"
)


class Block(NamedTuple):
    """Some columns of a feature matrix."""

    name: str  # where they come from; see the module
    width: int  # how many they are


Blocks = tuple[Block, ...]  # the blocks of a matrix from left to right, ``final`` first


@dataclass(frozen=True)
class BlockSource:
    """What the name of a block says.

    >>> BlockSource.parse("timm:vit_small/final@384")
    BlockSource(encoder='timm:vit_small', layer='final', size=384, is_mirrored=False)
    >>> BlockSource.parse("final+mirrored").name
    'final+mirrored'
    """

    encoder: str  # URI of the encoder; "" for the first one, which has the class text
    layer: str  # layer of its image tower
    size: int | None = None  # side of the square in pixels; None for the encoder's own
    is_mirrored: bool = False  # whether it is the mean of the picture and its mirror image

    @classmethod
    def parse(cls, name: str) -> BlockSource:
        """Parse the name of a block."""
        match = NAME_PATTERN.fullmatch(name)
        if match is None:
            raise InputError(
                f"{brief(name)} names no block: a block is LAYER, LAYER@PIXELS or ENCODER/LAYER, such as final or "
                "final@384"
            )
        size = int(match["size"]) if match["size"] else None
        return cls(match["encoder"] or "", match["layer"], size, bool(match["view"]))

    @property
    def name(self) -> str:
        """The name that `parse` takes."""
        size = "" if self.size is None else f"@{self.size}"
        return f"{self.encoder + '/' if self.encoder else ''}{self.layer}{size}{MIRRORED if self.is_mirrored else ''}"

    @property
    def pass_key(self) -> tuple[str, int | None, bool]:
        """Equal for blocks that one pass through an image tower gives: encoder, size and mirroring."""
        return self.encoder, self.size, self.is_mirrored


def as_blocks(pairs: Iterable[tuple[str, int]], *, needs_final: bool = True) -> Blocks:
    """Checked blocks from pairs of name and width.

    >>> as_blocks([("final", 2), ("stage3", 3)])
    (Block(name='final', width=2), Block(name='stage3', width=3))
    """
    blocks = tuple(Block(str(name), int(width)) for name, width in pairs)
    names = [block.name for block in blocks]
    if not blocks or (needs_final and names[0] != FINAL):
        raise InputError(f"the first block of features must be {FINAL!r}, but the blocks are {brief(names)}")
    if len(set(names)) < len(names) or len(names) > MAX_BLOCKS:
        raise InputError(f"blocks must have different names, at most {MAX_BLOCKS}, but are {brief(names)}")
    for block in blocks:
        BlockSource.parse(block.name)
        if not 0 < block.width <= MAX_BLOCK_WIDTH:
            raise InputError(f"block {block.name} must be 1 to {MAX_BLOCK_WIDTH} columns wide, but is {block.width}")
    return blocks


def total_width(blocks: Sequence[Block]) -> int:
    """Number of columns of all blocks."""
    return sum(block.width for block in blocks)


def column_slices(blocks: Sequence[Block]) -> dict[str, slice]:
    """The columns of each block by name."""
    ends = accumulate(block.width for block in blocks)
    return {block.name: slice(end - block.width, end) for block, end in zip(blocks, ends, strict=True)}


def select_blocks(blocks: Sequence[Block], names: Iterable[str]) -> tuple[Blocks, list[int] | slice]:
    """Some of the blocks in their order, and their columns: a slice if they lie side by side, which copies nothing.

    >>> select_blocks([Block("final", 2), Block("stage3", 1), Block("stage4", 1)], ["stage4", "final"])
    ((Block(name='final', width=2), Block(name='stage4', width=1)), [0, 1, 3])
    """
    wanted, slices = set(names), column_slices(blocks)
    missing = wanted - slices.keys()
    if missing:
        raise InputError(f"these features have no block {sorted(missing)[0]!r}; they have {', '.join(slices)}")
    selected = tuple(block for block in blocks if block.name in wanted)
    columns = [column for block in selected for column in range(slices[block.name].start, slices[block.name].stop)]
    if columns and columns[-1] - columns[0] == len(columns) - 1:
        return selected, slice(columns[0], columns[-1] + 1)
    return selected, columns
