"""Explanations of models that read several blocks of features."""

import json

import numpy as np
import pytest
import torch

from clipadapter import FewShotClassifier
from clipadapter.encoders import open_blocks
from clipadapter.explain import explain

from ..tiny_encoder import WIDTH, NearestMeanOfAll, TinyEncoder
from .test_explanation import NAMES, square

BLOCKS = ["final", "inner", "final@48"]


class SumOfBlocks(NearestMeanOfAll):
    """The same head, which knows that its logits are a sum over blocks."""

    def _block_logits(self, X):
        parts = {}
        for i, block in enumerate(self.read_blocks):
            start = sum(each.width for each in self.read_blocks[:i])
            columns = slice(start, start + block.width)
            a, b = (torch.nn.functional.normalize(rows[:, columns]) for rows in (X, self.means_))
            parts[block.name] = 10 * a @ b.T / len(self.read_blocks)
        return parts


class WithPatches(TinyEncoder):
    """The features of the quarters of a square are those of its parts."""

    def patch_features(self, image):
        pixels = self.preprocess(image)
        quarters = [pixels[:, y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16)]
        return self.network(torch.stack(quarters)).detach().reshape(2, 2, WIDTH)


def fitted(head, encoder=WithPatches, names=BLOCKS):
    images = [square(name, seed) for name in NAMES for seed in range(4)]
    labels = [name for name in NAMES for _ in range(4)]
    return FewShotClassifier(open_blocks(encoder(), names), head, cache=None).fit(images, labels)


@pytest.fixture(scope="module")
def model():
    return fitted(SumOfBlocks())


def cosines(rows, means):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)) @ (means / np.linalg.norm(means, axis=1)[:, None]).T


def test_the_parts_of_blocks_add_up_to_the_margin(model):
    explanation = explain(model, square("green", 9))
    assert [part.name for part in explanation.blocks] == BLOCKS
    assert sum(part.margin for part in explanation.blocks) == pytest.approx(explanation.margin, abs=1e-5)
    feature = model.encoder_.encode_images([square("green", 9)]).numpy()
    logits = 10 * cosines(feature[:, :WIDTH], model.head_.means_[:, :WIDTH].numpy())[0] / 3
    k, other = NAMES.index(explanation.label), NAMES.index(explanation.against)
    assert explanation.blocks[0].margin == pytest.approx(logits[k] - logits[other], abs=1e-4)
    assert explanation.blocks[0].label == NAMES[logits.argmax()]
    assert any(sentence.startswith("By block of features: final ") for sentence in explanation.sentences())
    record = json.loads(json.dumps(explanation.to_dict()))["blocks"]
    assert record[1] == {"name": "inner", "margin": explanation.blocks[1].margin, "says": explanation.blocks[1].label}
    page = explanation._repr_html_()
    assert "for (+) or against (-)" in page and "final@48" in page and "nearest shot" in page
    similarity = cosines(feature[:, :WIDTH], model.support_.X[:, :WIDTH]).max()  # shots are compared by final
    assert explanation.nearest[0].similarity == pytest.approx(similarity, abs=1e-4)


def test_the_heat_map_is_that_of_final(model):
    picture = square("red", 9)
    explanation = explain(model, picture, class_name="red")
    patches = model.encoder_.plain.patch_features(picture).reshape(4, WIDTH).numpy()
    logits = 10 * cosines(patches, model.head_.means_[:, :WIDTH].numpy()) / 3
    contrast = logits[:, 2] - logits[:, :2].mean(axis=1)
    np.testing.assert_allclose(explanation.heat_map, contrast.reshape(2, 2), atol=1e-4)
    assert "the heat map shows what the block final contributes" in explanation.notes


def test_a_head_whose_logits_are_no_sum_has_neither_and_of_one_block_nothing_is_said():
    explanation = explain(fitted(NearestMeanOfAll()), square("red", 9))
    assert explanation.blocks == () and explanation.heat_map is None
    assert sum("not a sum over blocks" in note for note in explanation.notes) == 2
    explanation = explain(fitted("knn", names=["final"]), square("red", 9))
    assert explanation.blocks == () and explanation.to_dict()["blocks"] == []
    assert not any("block" in text for text in (*explanation.sentences(), *explanation.notes))


def test_auto_explains_its_blocks():
    model = fitted("auto", TinyEncoder)
    explanation = explain(model, square("red", 9))
    assert [part.name for part in explanation.blocks] == [block.name for block in model.encoder_.info.blocks]
    assert sum(part.margin for part in explanation.blocks) == pytest.approx(explanation.margin, rel=1e-3)
    assert explanation.heat_map is None and "no heat map: tiny has no features of parts" in " ".join(explanation.notes)
