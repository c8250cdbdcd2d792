"""One colour and marker per method, the same in every plot and page."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MethodStyle:
    """How the figures of a method are drawn."""

    colour: str  # on white, such as "#0072B2"
    dark: str  # the same hue for dark pages
    marker: str = "o"  # of matplotlib

    @property
    def css(self) -> str:
        """The colour for a page that may be light or dark.

        >>> method_style("clip-adapter").css
        'light-dark(#0072B2, #1F8ED1)'
        """
        return f"light-dark({self.colour}, {self.dark})"


BLUE, VERMILION, GREEN = ("#0072B2", "#1F8ED1"), ("#D55E00", "#EE5D0D"), ("#009E73", "#33CC99")
BLACK = ("#1D2126", "#E6E8EB")
PURPLE, ORANGE, SKY, BROWN = (
    ("#CC79A7", "#B07F9A"),
    ("#E69F00", "#FFCF46"),
    ("#56B4E9", "#9CCDF3"),
    ("#7A4B2A", "#CB8354"),
)
SHARED = (PURPLE, ORANGE, SKY, BROWN)  # colours of several methods each; those above them have one method
MARKERS = "osD^vPX<>"
METHOD_STYLES = {
    "clip-adapter": MethodStyle(*BLUE, "o"),
    "auto": MethodStyle(*VERMILION, "D"),
    "linear-probe": MethodStyle(*GREEN, "s"),
    "zero-shot": MethodStyle(*BLACK, "*"),
    "tip-adapter": MethodStyle(*SKY, "^"),
    "tip-adapter-f": MethodStyle(*PURPLE, "^"),
    "ape": MethodStyle(*ORANGE, "^"),
    "ape-t": MethodStyle(*BROWN, "^"),
    "taskres": MethodStyle(*ORANGE, "v"),
    "clap": MethodStyle(*BROWN, "s"),
    "cross-modal": MethodStyle(*SKY, "s"),
    "lp++": MethodStyle(*ORANGE, "s"),
    "zs-lp": MethodStyle(*PURPLE, "s"),
    "gda": MethodStyle(*PURPLE, "P"),
    "proker": MethodStyle(*SKY, "P"),
    "prototype": MethodStyle(*BROWN, "P"),
    "nearest-mean": MethodStyle(*ORANGE, "P"),
    "knn": MethodStyle(*ORANGE, "X"),
    "transclip": MethodStyle(*BROWN, "X"),
    "zlap": MethodStyle(*SKY, "X"),
    "coop": MethodStyle(*ORANGE, "D"),
    "cocoop": MethodStyle(*PURPLE, "D"),
    "kgcoop": MethodStyle(*SKY, "D"),
    "prograd": MethodStyle(*BROWN, "D"),
    "clip-lora": MethodStyle(*SKY, "v"),
    "clip-svd": MethodStyle(*BROWN, "v"),
    "prolip": MethodStyle(*PURPLE, "v"),
    "hoso": MethodStyle(*PURPLE, "o"),
    "bdc-adapter": MethodStyle(*SKY, "o"),
    "svl-adapter": MethodStyle(*BROWN, "o"),
    "rla": MethodStyle(*ORANGE, "o"),
    "ss-text": MethodStyle(*ORANGE, "<"),
    "ss-text-u": MethodStyle(*BROWN, "<"),
    "stata": MethodStyle(*PURPLE, "X"),
    "timo": MethodStyle(*SKY, "<"),
    "two-stage": MethodStyle(*SKY, ">"),
    "maple": MethodStyle(*ORANGE, ">"),
    "prompt-src": MethodStyle(*PURPLE, ">"),
}
"""The style of a method never changes: readers compare plots. The colours are those of Okabe and Ito, whose lightness
differs for colour-blind people too, without yellow, which is too light for a line; brown is added. The method of the
paper and the methods that most plots show have colours of their own."""


def method_style(method: str) -> MethodStyle:
    """The style of a method by its registered name; that of a method without an entry depends on its name alone."""
    if method in METHOD_STYLES:
        return METHOD_STYLES[method]
    number = zlib.crc32(method.encode())
    return MethodStyle(*SHARED[number % len(SHARED)], MARKERS[number // len(SHARED) % len(MARKERS)])


def assign_styles(methods: Sequence[str]) -> list[MethodStyle]:
    """Styles of the lines of one plot: the first line of a method has its style, further ones get other colours."""
    first = {method: i for i, method in reversed(list(enumerate(methods)))}
    used = {method_style(method).colour for method in methods}
    free = [pair for pair in (*SHARED, BLUE, VERMILION, GREEN, BLACK) if pair[0] not in used] or list(SHARED)
    styles, n_others = [], 0
    for i, method in enumerate(methods):
        style = method_style(method)
        if first[method] != i:
            marker = MARKERS[(MARKERS.find(style.marker) + 1 + n_others) % len(MARKERS)]
            style = MethodStyle(*free[n_others % len(free)], marker)
            n_others += 1
        styles.append(style)
    return styles
