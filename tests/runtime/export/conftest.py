"""Pictures of three colours, and models fitted to them."""

import numpy as np
import pytest
from PIL import ImageColor

from clipadapter.classifier import FewShotClassifier
from clipadapter.heads import create_head, head_info
from clipadapter.uncertainty import UncertaintyOptions

COLOURS = ("red", "green", "blue")
SHORT = {"epochs": 3, "steps": 3}
"""Parameters that say how long heads are trained, as far as they have them."""


@pytest.fixture(scope="session")
def draw():
    """A function that draws n noisy pictures of each colour: pictures, and their labels."""

    def make(n: int, seed: int = 0, size: int = 40) -> tuple[list[np.ndarray], list[str]]:
        rng = np.random.default_rng(seed)
        pictures, labels = [], []
        for name in COLOURS:
            for i in range(n):
                base = np.array(ImageColor.getrgb(name)) * 0.6 + rng.integers(0, 100, (4, 4, 3))
                big = np.kron(base, np.ones((size // 4, size // 4, 1))) + rng.integers(0, 20, (size, size, 3))
                pictures.append(np.clip(big[:, : size - i % 5], 0, 255).astype(np.uint8))
                labels.append(name)
        return pictures, labels

    return make


@pytest.fixture(scope="session")
def fitted(draw):
    """A function that fits a head to six pictures of each colour, each once a session."""
    kept = {}

    def fit(head: str, encoder="toy", several: bool = False, n: int = 6, names=None, **uncertainty: object):
        key = head, str(encoder), several, n, names, repr(uncertainty)
        if key not in kept:
            cls, (pictures, labels) = head_info(head).cls, draw(n)
            made = create_head(head)
            made.set_params(**{name: value for name, value in SHORT.items() if name in made.get_params(deep=False)})
            if several:
                labels = [
                    (name,) if i % 3 else (name, "red" if name != "red" else "blue") for i, name in enumerate(labels)
                ]
            options = UncertaintyOptions(**uncertainty) if uncertainty else None
            run = {"cache": None, "backend": "torch", "precision": "fp32"}
            # test_blocks.py exports models of several blocks.
            model = FewShotClassifier(encoder, made, uncertainty=options, quality="fast", **run)
            more = {"unlabelled": draw(4, seed=1)[0]} if cls.transductive else {}
            kept[key] = model.fit(pictures, labels, names, **more)
        return kept[key]

    return fit
