"""A model of three colours: as an exported file, and as an object whose runs a test can hold up."""

import base64
import io
import threading

import numpy as np
from PIL import Image

from clipadapter.runtime import ExportMetadata, Outputs, Predictor
from clipadapter.runtime.engines.formats import append_checksum
from clipadapter.serve import ServedModels
from clipadapter.uncertainty import Conformal, Uncertainty, learn_multilabel, learn_rejector
from clipadapter.utils.pixels import PixelSpec

from ..runtime.conftest import NAMES, SIDE, graph

PIXELS = PixelSpec(SIDE, (0.0,) * 3, (1.0,) * 3)


def learned():
    """Rejects what has no strong colour; its one part is one minus the cosine to the nearest axis."""
    rows = np.repeat(np.eye(3), 8, axis=0) + 0.02 * np.arange(24)[:, None]
    rejector = learn_rejector(rows, np.repeat([0, 1], 12), 3, text=np.eye(3)).without_arrays()
    return Uncertainty(
        rejector=rejector, conformal=Conformal(np.linspace(0.0, 0.5, 20), np.arange(20) % 3, np.zeros(20, int), 3)
    )


def several():
    rng = np.random.default_rng(0)
    targets = rng.random((60, 3)) < 0.4
    return Uncertainty(multilabel=learn_multilabel(12 * targets - 6 + rng.standard_normal((60, 3)), targets))


class Colours(Predictor):
    """Features are the mean of each channel, logits ten times these; a run waits for `go`."""

    def __init__(self, uncertainty=None):
        self.metadata, self.backend = ExportMetadata(NAMES, (PIXELS,), uncertainty or learned()), "none"
        self.class_names, self.inputs = NAMES, (PIXELS,)
        self.uncertainty, self.precision = self.metadata.uncertainty, "fp32"
        self.go, self.running, self.batches = threading.Event(), threading.Event(), []
        self.go.set()

    def run(self, squares):
        self.running.set()
        if len(squares) and not self.go.wait(30):
            raise RuntimeError("go was never set")
        self.running.clear()
        self.batches.append(len(squares))
        features = squares.mean(axis=(1, 2)).reshape(-1, 3) / 255
        parts = 1 - features.max(axis=1, keepdims=True, initial=0)
        return Outputs(10 * features, features, parts, ood_scores=parts[:, 0])


class OpenedModels(ServedModels):
    """Opens every file as one model, if it is given, and tries no changed file in a child process."""

    def __init__(self, specs, limits=None, model=None):
        self.model = model
        super().__init__(specs, limits)

    def _open(self, path, is_changed):
        return self.model or super()._open(path, is_changed=False)


def picture(colour, side=8, kind="PNG"):
    """A plain picture as the bytes of its file."""
    data = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(data, kind)
    return data.getvalue()


def base64_of(data):
    return base64.b64encode(data).decode()


RED, BLUE, GREY = picture((255, 0, 0)), picture((0, 0, 255)), picture((20, 20, 20))


def write_file(path, names=NAMES):
    """An exported file of the colours, without `clipadapter.runtime.export`."""
    import onnx

    facts = {"encoder": {"name": "hand", "licence": "CC0-1.0"}, "head": {"name": "axes"}}
    onnx.save(graph(ExportMetadata(names, (PIXELS,), learned(), **facts).to_json()), path)
    append_checksum(path)
    return path


def ask(client, *pictures, path="/v1/predict", **options):
    """The answer to a request with pictures in JSON."""
    return client.post(path, json={"images": [base64_of(data) for data in pictures], **options})


def described(client, name="colours"):
    """What the server says about a model."""
    (found,) = (one for one in client.get("/v1/models").json()["models"] if one["name"] == name)
    return found


def refused(response, status, *words):
    """Whether an answer says why there is none, in the one shape."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    for word in words:
        assert word in response.json()["error"], response.text
    return True
