"""No message of an error prints all numbers of an array or a list: sizes, and a few values."""

import inspect
import re

import numpy as np
import pytest
import torch

from clipadapter import FeatureSet, FewShotClassifier, TextFeatures, create_encoder, create_head, load_dataset
from clipadapter.data import class_prompts, draw_shots, label_matrix, read_image
from clipadapter.errors import brief
from clipadapter.features import ViewSpec, encode_classes, parse_shard
from clipadapter.heads import head_info, select
from clipadapter.uncertainty import UncertaintyOptions

WIDE = np.linspace(0.11, 0.89, 512, dtype=np.float32)
VALUES = {
    "array": WIDE,
    "float64 matrix": np.stack([WIDE, WIDE]).astype(np.float64),
    "tensor": torch.from_numpy(WIDE),
    "list": WIDE.tolist(),
    "list of lists": [WIDE.tolist()],
    "dictionary": dict(enumerate(WIDE.tolist())),
}
PICTURES = [np.full((8, 8, 3), colour, np.uint8) for colour in ([255, 0, 0], [0, 0, 255])]
LABELS = ["red", "blue"]
TEXT = TextFeatures(LABELS, np.eye(2, 4))
X = np.eye(2, 4)


def check(call, kinds=tuple(VALUES)):
    """A call accepts each kind of value, or raises an error with a short message."""
    for kind in kinds:
        try:
            call(VALUES[kind])
        except Exception as error:
            message = str(error)
            # Three values of an array and two examples of what is right; or the first five labels that are no class.
            assert len(re.findall(r"\d\.\d", message)) <= 5, f"{kind}: {message[:500]}"
            assert len(message) <= 800, f"{kind}: {message}"


def classifier(**params):
    return FewShotClassifier(**{"encoder": "toy", "head": "linear-probe", "cache": None, **params})


@pytest.fixture(scope="module")
def fitted():
    return classifier().fit(PICTURES, LABELS)


# Parameters that are stored or used without a check of their own: whatever they are used for raises.
CONSTRUCTED = [name for name in inspect.signature(FewShotClassifier).parameters if name not in ("device", "cache")]


@pytest.mark.parametrize("parameter", CONSTRUCTED)
def test_wrong_parameters_of_a_classifier(parameter):
    check(lambda wrong: classifier(**{parameter: wrong}).fit(PICTURES, LABELS))


METHODS = {
    "fit pictures": lambda model, wrong: classifier().fit(wrong, LABELS),
    "fit labels": lambda model, wrong: classifier().fit(PICTURES, wrong),
    "fit class names": lambda model, wrong: classifier().fit(PICTURES, LABELS, wrong),
    "fit outliers": lambda model, wrong: classifier().fit(PICTURES, LABELS, outliers=wrong),
    "fit features": lambda model, wrong: classifier().fit_features(wrong, TEXT),
    "predict": lambda model, wrong: model.predict(wrong),
    "predict_proba": lambda model, wrong: model.predict_proba(wrong),
    "predict reject": lambda model, wrong: model.predict(PICTURES, reject=wrong),
    "predict costs": lambda model, wrong: model.predict(PICTURES, costs=wrong),
    "classify": lambda model, wrong: model.classify(wrong),
    "classify top": lambda model, wrong: model.classify(PICTURES, wrong),
    "evaluate": lambda model, wrong: model.evaluate(wrong),
    "evaluate labels": lambda model, wrong: model.evaluate(PICTURES, wrong),
    "score": lambda model, wrong: model.score(wrong, LABELS),
    "add_class": lambda model, wrong: model.add_class(wrong, PICTURES),
    "add_examples": lambda model, wrong: model.add_examples(PICTURES, wrong),
    "correct": lambda model, wrong: model.correct(PICTURES, wrong),
    "remove_class": lambda model, wrong: model.remove_class(wrong),
    "rename_class": lambda model, wrong: model.rename_class("red", wrong),
    "undo": lambda model, wrong: model.undo(wrong),
    "extract_features": lambda model, wrong: model.extract_features(PICTURES, LABELS, LABELS, wrong),
    "encode_classes": lambda model, wrong: model.encode_classes(wrong),
}


@pytest.mark.parametrize("call", METHODS.values(), ids=METHODS)
def test_wrong_arguments_of_a_classifier(call, fitted):
    check(lambda wrong: call(fitted, wrong))


FUNCTIONS = {
    "TextFeatures labels": lambda wrong: TextFeatures(wrong, np.eye(2)),
    "TextFeatures embeddings": lambda wrong: TextFeatures(LABELS, wrong),
    "TextFeatures scale": lambda wrong: TextFeatures(LABELS, np.eye(2), wrong),
    "TextFeatures order": lambda wrong: TextFeatures(LABELS, np.eye(2), order=wrong),
    "FeatureSet X": lambda wrong: FeatureSet(wrong, LABELS, LABELS),
    "FeatureSet y": lambda wrong: FeatureSet(X, wrong, LABELS),
    "FeatureSet many y": lambda wrong: FeatureSet(np.ones((len(wrong), 4)), wrong, LABELS),
    "FeatureSet names": lambda wrong: FeatureSet(X, LABELS, wrong),
    "FeatureSet take": lambda wrong: FeatureSet(X, LABELS, LABELS).take(wrong),
    "head by name": create_head,
    "head info": head_info,
    "encoder": create_encoder,
    "data set": load_dataset,
    "picture": read_image,
    "shots": lambda wrong: draw_shots(LABELS, wrong, 0),
    "labels of shots": lambda wrong: draw_shots(wrong, 600, 0),
    "prompts": lambda wrong: class_prompts(LABELS, wrong, None),
    "names of prompts": lambda wrong: class_prompts(wrong, "default", None),
    "label matrix": lambda wrong: label_matrix(wrong, LABELS),
    "class text": lambda wrong: encode_classes(create_encoder("toy"), {"red": wrong}),
    "views": lambda wrong: ViewSpec(count=wrong),
    "crop": lambda wrong: ViewSpec(scale=wrong),
    "shard": parse_shard,
    **{f"uncertainty {name}": lambda wrong, name=name: UncertaintyOptions(**{name: wrong})
       for name in inspect.signature(UncertaintyOptions).parameters},
    "select grid": lambda wrong: select(create_head("linear-probe"), X, LABELS, TEXT, grid={"C": wrong}),
    "select heads": lambda wrong: select(wrong, X, LABELS, TEXT),
}  # fmt: skip


@pytest.mark.parametrize("call", FUNCTIONS.values(), ids=FUNCTIONS)
def test_wrong_arguments_of_functions(call):
    check(call)


# Heads that are fitted in milliseconds if they ignore the value.
PARAMETERS = [
    (name, parameter)
    for name in ("gda", "knn", "linear-probe", "prototype", "rail", "tip-adapter", "zero-shot")
    for parameter in inspect.signature(head_info(name).cls).parameters
]


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_wrong_parameters_of_heads(name, parameter):
    check(lambda wrong: create_head(name, **{parameter: wrong}).fit(X, LABELS, text=TEXT), ("array", "list"))


FITS = {
    "X": lambda head, wrong: head.fit(wrong, LABELS, text=TEXT),
    "y": lambda head, wrong: head.fit(X, wrong, text=TEXT),
    "text": lambda head, wrong: head.fit(X, LABELS, text=wrong),
    "unlabelled": lambda head, wrong: head.fit(X, LABELS, text=TEXT, unlabelled=wrong),
    "predict": lambda head, wrong: head.fit(X, LABELS, text=TEXT).predict(wrong),
}


@pytest.mark.parametrize("call", FITS.values(), ids=FITS)
def test_wrong_arguments_of_a_head(call):
    check(lambda wrong: call(create_head("linear-probe"), wrong))


def test_a_message_says_size_type_and_three_values():
    assert brief(WIDE).startswith("array (512,) float32: 0.1") and brief(WIDE).endswith(" ...")
    assert brief(torch.zeros(2, 3)) == "Tensor (2, 3) float32: 0.0, 0.0, 0.0 ..."
    assert brief([1, 2, 3]) == "[1, 2, 3]" and brief([]) == "[]"
    assert brief([[1] * 99] * 2).startswith("list of 2: list of 99: 1, 1, 1 ...")
    assert brief(np.float32(0.5)) == "0.5" and brief(np.array(3)) == "3"
    assert brief("x" * 1000).endswith("x' ... (1000 characters)")
    assert brief({i: i for i in range(9)}) == "dict of 9: 0, 1, 2 ..."
    assert brief(object()).startswith("<object object")
