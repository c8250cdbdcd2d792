"""CoCoOp: each picture's prompts written out by hand, its net, and the tower that it needs to answer."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from clipadapter.encoders import open_text_tower
from clipadapter.errors import ArtifactError, InputError
from clipadapter.features import encode_classes
from clipadapter.heads import TextFeatures
from clipadapter.tuners.cocoop import CoCoOp
from clipadapter.tuners.coop import CoOp

NAMES = ["cat", "dog", "golden retriever"]


@pytest.fixture(scope="module")
def text(opened):
    return encode_classes(opened("tiny"), {name: [f"a photo of a {name}."] for name in NAMES})


@pytest.fixture(scope="module")
def shots():
    X = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    return X, NAMES * 2


@pytest.fixture(scope="module")
def head(text, shots):
    return CoCoOp(epochs=3, lr=0.05).fit(*shots, text=text)


def by_hand(head, tower, x):
    """Logits of one picture: its context between the marks, class by class (equation 3)."""
    x = normalize(torch.from_numpy(x), dim=0)
    shift = head.up_ @ torch.relu(head.down_ @ x + head.down_bias_) + head.up_bias_
    found = []
    for name in NAMES:
        (tokens,) = tower.tokenize([f"{name}."])
        embedded = tower.embed(torch.tensor(tokens))
        prompt = torch.cat([embedded[:1], head.context_ + shift, embedded[1:]])
        with torch.no_grad():
            vector = tower.encode(prompt[None], torch.tensor([len(prompt)]))[0]
        found.append(head.scale_ * float(x @ normalize(vector, dim=0)))
    return found


def test_each_picture_has_prompts_of_its_own(head, shots, opened):
    tower = open_text_tower(opened("tiny"))
    expected = [by_hand(head, tower, x) for x in shots[0]]
    np.testing.assert_allclose(head.logits(shots[0]), expected, rtol=1e-4, atol=1e-4)
    assert np.std(head.logits(shots[0]) / np.linalg.norm(shots[0], axis=1)[:, None], axis=0).min() > 0


def test_a_net_of_zeros_is_coop(text, shots):
    class Still(CoCoOp):
        def _net(self, d, context):
            return {name: 0 * tensor for name, tensor in super()._net(d, context).items()}

    asked = {"ctx_init": "a photo of a", "epochs": 1, "lr": 1e-12, "weight_decay": 0.0, "batch_size": 6}
    found, expected = (head(**asked).fit(*shots, text=text).logits(shots[0]) for head in (Still, CoOp))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_loaded_head_answers_with_the_tower_of_its_classes_in_any_order(head, shots, text):
    again = CoCoOp().load_state(head.state(), NAMES, 32)
    assert again.needs_tower_to_predict  # what asks for many answers, such as a heat map, leaves such heads out
    with pytest.raises(InputError, match=r"call attach\(encode_classes"):
        again.logits(shots[0])
    # the same sums in the same order
    np.testing.assert_array_equal(again.attach(text).logits(shots[0]), head.logits(shots[0]))
    with pytest.raises(InputError, match="needs the text tower"):
        head.attach(text.with_tower(None))
    other = TextFeatures([*NAMES[:2], "wolf"], text.embeddings, tower=text.tower)
    with pytest.raises(InputError, match="class text of cat, dog, wolf is not that of the classes cat, dog, golden"):
        head.attach(other)
    turned = TextFeatures(NAMES[::-1], text.embeddings[::-1], text.logit_scale, tower=text.tower)
    again = CoCoOp().load_state(head.state(), NAMES, 32)
    # the same sums in the same order
    np.testing.assert_array_equal(again.attach(turned).logits(shots[0]), head.logits(shots[0]))
    other = head.for_classes(turned.with_order("given"))
    np.testing.assert_allclose(other.logits(shots[0]), head.logits(shots[0])[:, ::-1], rtol=1e-4, atol=1e-4)


def test_arrays_of_another_head_are_refused(head):
    state = head.state()
    for change in (
        {name: value for name, value in state.items() if name != "up_"},
        state | {"up_": np.ones((31, 2), np.float32)},
        state | {"context_": np.full_like(state["context_"], np.nan)},
    ):
        with pytest.raises(ArtifactError, match="CoCoOp"):
            CoCoOp().load_state(change, NAMES, 32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:`torch.jit.trace`:FutureWarning")
def test_it_is_not_converted_to_a_graph(head, shots):
    with pytest.raises(InputError, match="no fixed function of features"):
        torch.jit.trace(head._logits, torch.from_numpy(shots[0]))
