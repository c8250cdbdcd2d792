"""Simulated textile pictures with two kinds of defects, from the package conformal-clip-data (MIT).

Megahed et al., few-shot CLIP for fabric inspection, https://arxiv.org/abs/2501.12596. There are 1,000 pictures of
nominal fabric, 500 with a local defect (a small spot) and 500 with a global one (a change of the whole weave).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clipadapter.data.dataset import Dataset
from clipadapter.data.load import load_dataset
from clipadapter.errors import require

CLASS_NAMES = {
    "global": "fabric with a global defect",
    "local": "fabric with a local defect",
    "nominal": "flawless fabric",
}


def textiles() -> Dataset:
    """Load the 2,000 pictures in one split, with class names that suit prompts.

    Raises:
        MissingExtraError: if the extra ``demo`` is not installed.
    """
    package = require("conformal_clip_data", "demo", "The textile data set")
    return replace(load_dataset(Path(package.textile_simulated_root())), name="textiles").rename(CLASS_NAMES)
