"""The choice of quality on the page: what the model looks at, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipadapter.classifier.encoder import QUALITIES, block_names, blocks_of_quality, relative_cost
from clipadapter.encoders import Encoder
from clipadapter.heads import head_info
from clipadapter.utils.blocks import RARE_PATCHES, BlockSource


@dataclass(frozen=True)
class QualityOption:
    """One position of the switch."""

    name: str  # "fast", "standard" or "best"
    text: str  # what the model looks at and what that costs, in a sentence or two


def quality_options(encoder: Encoder, others: Sequence[Encoder] = ()) -> tuple[QualityOption, ...]:
    """Return the positions of the switch, the cheapest first.

    >>> from clipadapter.encoders import create_encoder
    >>> [option.text for option in quality_options(create_encoder("toy"))[:2]]  # doctest: +NORMALIZE_WHITESPACE
    ['The final feature of the encoder: what is in the picture as a whole. Takes the least time.',
     'Also its inner layers, which show textures and small parts. Takes hardly more time.']
    """
    fast, standard, best = (tuple(blocks_of_quality(encoder, others, quality)) for quality in QUALITIES)
    final_of = f"each of the {len(others) + 1} encoders" if others else "the encoder"
    its, it_takes = ("their", "the encoders take") if others else ("its", "the encoder takes")
    texts = [f"The final feature of {final_of}: what is in the picture as a whole. Takes the least time."]
    if standard == fast:
        texts.append(f"The same as fast here: features of {its} inner layers are not available.")
    else:
        texts.append(f"Also {its} inner layers, which show textures and small parts. Takes hardly more time.")
    if best == standard:
        texts.append(f"The same as standard here: {it_takes} pictures of one size only.")
    else:
        sizes = sorted({source.size for source in map(BlockSource.parse, best) if source.size is not None})
        ratio = relative_cost(encoder, others, best) / relative_cost(encoder, others, fast)
        at = " or ".join(map(str, sizes))
        cost = f"Takes about {ratio:.0f} times as long per picture."
        has_patches = any(BlockSource.parse(name).layer == RARE_PATCHES for name in best)
        defects = " It also looks for small, unusual parts, such as defects." if has_patches else ""
        texts.append(f"Also the picture at {at} pixels, where details are clearer, and mirrored.{defects} {cost}")
    return tuple(QualityOption(name, text) for name, text in zip(QUALITIES, texts, strict=True))


def why_no_unlabelled(head: str) -> str:
    """Return why the head can't learn from unlabelled pictures; empty if it can.

    >>> why_no_unlabelled("auto"), why_no_unlabelled("knn")
    ('', "The head 'knn' learns from labelled pictures only.")
    """
    return "" if head_info(head).cls.accepts_unlabelled else f"The head '{head}' learns from labelled pictures only."


def why_no_choice(head: str, encoder: Encoder) -> str:
    """Return why the quality makes no difference; empty if it does.

    >>> from clipadapter.encoders import create_encoder
    >>> why_no_choice("clip-adapter", create_encoder("toy"))
    "The head 'clip-adapter' uses the final feature only, so there is nothing to choose."
    """
    reads = head_info(head).cls.reads
    if reads == "second-encoder":
        return f"The head '{head}' uses the final features of two encoders, so there is nothing to choose."
    if reads != "all":
        return f"The head '{head}' uses the final feature only, so there is nothing to choose."
    named = block_names(encoder)
    if len(named) > 1:
        return f"The encoder was given with the features to use ({', '.join(named)}), so there is nothing to choose."
    return ""
