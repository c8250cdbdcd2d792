"""Which blocks of features a head reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from clipadapter.blocks import FINAL, UNPROJECTED, Block, Blocks, BlockSource, as_blocks, select_blocks, total_width
from clipadapter.errors import InputError

Reads = Literal["final", "unprojected", "second-encoder", "all"]
"""What `clipadapter.heads.Head.reads` may be."""


def check_blocks(width: int, blocks: Sequence[tuple[str, int]] | None) -> Blocks:
    """The blocks of features of this width; ``final`` alone for None.

    Raises:
        InputError: if their widths do not add up to it.

    >>> check_blocks(3, None)
    (Block(name='final', width=3),)
    """
    if blocks is None:
        return (Block(FINAL, width),)
    checked = as_blocks(blocks)
    if total_width(checked) != width:
        widths = ", ".join(f"{block.name} {block.width}" for block in checked)
        raise InputError(f"features have width {width}, but their blocks have {total_width(checked)}: {widths}")
    return checked


def blocks_to_read(reads: Reads, blocks: Blocks) -> Blocks:
    """Those of the blocks that a head reads.

    >>> blocks = as_blocks([("final", 2), ("inner", 3), ("lite/final", 2)])
    >>> [block.name for block in blocks_to_read("second-encoder", blocks)]
    ['final', 'lite/final']
    """
    if reads == "all" or len(blocks) == 1:
        return blocks
    names = [FINAL]
    if reads == "unprojected":
        names += [block.name for block in blocks if block.name == UNPROJECTED]
    if reads == "second-encoder":
        sources = [BlockSource.parse(block.name) for block in blocks[1:]]
        names += [source.name for source in sources if source.encoder and source == BlockSource(source.encoder, FINAL)][
            :1
        ]
    return tuple(block for block in blocks if block.name in names)


def take_columns(X: Tensor, blocks: Blocks, read: Blocks) -> Tensor:
    """The columns (..., d) of the blocks that are read, of features (..., all columns)."""
    if len(read) == len(blocks):
        return X
    return X[..., select_blocks(blocks, [block.name for block in read])[1]].contiguous()
