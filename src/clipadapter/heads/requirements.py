"""What a head reads of its input, and checks that `Head.fit` got it: blocks of features, class text, other pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from clipadapter.errors import InputError, brief
from clipadapter.heads.support import as_matrix
from clipadapter.heads.text import TextFeatures
from clipadapter.utils.blocks import (
    FINAL,
    UNPROJECTED,
    Block,
    Blocks,
    BlockSource,
    as_blocks,
    select_blocks,
    total_width,
)
from clipadapter.utils.formatting import format_list
from clipadapter.utils.functional import unit

if TYPE_CHECKING:
    from clipadapter.heads.base import Head


Reads = Literal["final", "unprojected", "second-encoder", "all"]  # what `clipadapter.heads.Head.reads` may be


def check_blocks(width: int, blocks: Sequence[tuple[str, int]] | None) -> Blocks:
    """The blocks of features of this width; ``final`` alone for None."""
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


def check_text(head: Head, text: TextFeatures | None, blocks: Blocks) -> None:
    """Refuse class text that is missing where the head needs it, or as wide as no feature."""
    name = type(head).__name__
    if text is not None and not hasattr(text, "embeddings"):
        raise InputError(
            f"text is {brief(text)}: give TextFeatures(names, vectors), or encode_classes(encoder, prompts)"
        )
    if head.needs_text and text is None:
        raise InputError(f"{name} needs class text: call fit(X, y, text=TextFeatures(names, vectors))")
    if head.needs_tower and (text is None or text.tower is None):
        raise InputError(
            f"{name} trains through the text tower: fit it by FewShotClassifier, or call "
            "fit(X, y, text=encode_classes(encoder, prompts))"
        )
    if text is not None and text.absent and head.needs_text:
        raise InputError(
            f"{name} needs class text, but there is none of {format_list(text.absent)}; 'auto' needs none"
            + ("" if text.has_text else ", or name an encoder with a text tower, such as lite, beside this one")
        )
    width = blocks[0].width
    if text is not None and text.embeddings.shape[1] != width:
        expected = text.embeddings.shape[1]
        hint = f"If they have more blocks than {FINAL!r}, name them: blocks=[({FINAL!r}, {expected}), ...]"
        raise InputError(
            f"features have width {width} but class text has width {expected}: were they made by the same encoder?"
            f"{f' {hint}' if width > expected and len(blocks) == 1 else ''}"
        )


def check_unlabelled(head: Head, unlabelled: ArrayLike | None, views: Tensor, blocks: Blocks) -> Tensor | None:
    """Features of pictures without labels in the dtype of the shots; None if the head takes none."""
    name = type(head).__name__
    if not head.transductive and unlabelled is None:
        return None
    if not (head.transductive or head.accepts_unlabelled):
        raise InputError(f"{name} learns from labelled pictures only: it takes no unlabelled=")
    if unlabelled is None:
        raise InputError(
            f"{name} is transductive: it needs the pictures to classify when it is fitted; "
            "call fit(X, y, text=..., unlabelled=features)"
        )
    rows = torch.from_numpy(as_matrix(unlabelled)).to(views.dtype)
    expected = total_width(blocks)
    if rows.shape[1] != expected:
        raise InputError(f"unlabelled features have width {rows.shape[1]}, but the shots have {expected}")
    return take_columns(rows, blocks, blocks_to_read(head.reads, blocks))


def prompt_tensors(text: TextFeatures, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The unit text features (p_k, d) of the prompts of each class in the dtype of the features."""
    return tuple(unit(torch.from_numpy(rows.copy()).to(dtype)) for rows in text.prompt_rows)
