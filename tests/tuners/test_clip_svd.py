"""Singular values that change: the product alone counts, and tuned encoders go from pictures to files and back."""

import dataclasses

import open_clip
import pytest
import torch
from torch import nn

from clipadapter.encoders import attention_layers
from clipadapter.heads.training import train
from clipadapter.tuners import tower_tuner
from clipadapter.tuners.clip_svd import ClipSvd, attach_factors, count_singular_values, decompose, merge_change
from clipadapter.tuners.tower_tuner import tower_networks

from .coloured_squares import squares
from .golden_figures import golden


@pytest.fixture
def create_fast():
    return lambda: ClipSvd(lr=0.03, steps=100)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turn(n, seed):
    return torch.linalg.qr(draw(n, n, seed=seed))[0]


# --- a matrix


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_factors_make_the_matrix_and_changes_its_singular_values(shape):
    matrix, change = draw(*shape), torch.linspace(0.3, 0.1, min(shape), dtype=torch.float64)
    parts = decompose(matrix)
    torch.testing.assert_close((parts.u * parts.s) @ parts.vt, matrix)
    found = torch.linalg.svdvals(matrix + parts.product(change))
    torch.testing.assert_close(found, parts.s + change)


def test_how_equal_singular_values_are_turned_does_not_matter():
    s = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    u, v, inner = turn(7, 1), turn(7, 2), turn(3, 3)
    parts, change = decompose((u * s) @ v), draw(7, seed=4)
    turned = torch.eye(7, dtype=torch.float64)
    turned[1:4, 1:4] = inner
    null = turned.clone()
    null[5:, 5:] = turn(2, 5)  # of U alone: where s is zero, U and V are free of each other
    other = dataclasses.replace(parts, u=parts.u @ null, vt=turned.T @ parts.vt)
    torch.testing.assert_close((other.u * other.s) @ other.vt, (u * s) @ v)
    torch.testing.assert_close(other.product(change), parts.product(change))
    assert not torch.allclose((other.u * change) @ other.vt, (parts.u * change) @ parts.vt)
    mean = change[1:4].mean()
    torch.testing.assert_close(
        parts.average_equal(change), torch.stack([change[0], mean, mean, mean, change[4], s[5], s[6]])
    )


def test_the_layout_in_memory_does_not_matter(opened):
    """Of a real tower, whose singular values are close to each other."""
    weight = attention_layers(opened("lite").text_tower().network())[0]["q"].values.detach()
    change = draw(len(weight))
    one, other = decompose(weight).product(change), decompose(weight.T.contiguous()).product(change).T
    assert (one - other).norm() < 1e-8 * one.norm()


# --- a layer


class Block(nn.Module):
    """A block of open_clip's transformers in fp64, without its norms."""

    def __init__(self, width=8, heads=2):
        super().__init__()
        self.ln_1, self.attn = nn.Identity(), nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 2 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(2 * width, width))
        self.double().requires_grad_(False)
        for i, weight in enumerate(self.parameters()):
            weight.copy_(draw(*weight.shape, seed=i) / 2)

    def forward(self, x):
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.mlp(x)


def layers_of(block, letters="qkvoud"):
    return [{letter: layer[letter] for letter in letters} for layer in attention_layers(block, mlp=True)]


@pytest.mark.parametrize("letters", ["qkvoud", "v", "qo", "d", "ku"])
def test_a_layer_answers_the_same_merged_as_in_factors(letters):
    found = []
    for put in (attach_factors, merge_change):
        block = Block()
        layers = layers_of(block, letters)
        put(layers, draw(count_singular_values(layers), seed=9))
        found.append(block(draw(3, 5, 8)))
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], Block()(draw(3, 5, 8)), rtol=1e-2)


def test_a_block_is_trained_as_by_the_authors_layer_and_optimizer():
    """Outputs, gradients, and the singular values after some steps of AdamW, whose rate falls in a cosine."""
    tensors, parameters = golden("clip_svd")
    block = Block(heads=parameters["heads"])
    layers = layers_of(block)
    for letter, matrix in layers[0].items():
        matrix.values.copy_(tensors[f"weight.{letter}"])
    block.attn.in_proj_bias.copy_(torch.cat([tensors[f"bias.{letter}"] for letter in "qkv"]))
    for module, letter in ((block.attn.out_proj, "o"), (block.mlp.c_fc, "u"), (block.mlp.c_proj, "d")):
        module.bias.copy_(tensors[f"bias.{letter}"])
    singular = torch.cat([tensors[f"s.{letter}"] for letter in layers[0]])
    change = torch.zeros_like(singular).requires_grad_()
    attach_factors(layers, change)
    torch.testing.assert_close(block(tensors["x"]), tensors["output"])
    losses, gradients = [], []

    def loss(rows, views):
        value = (block(tensors["x"][rows]) - tensors["target"][rows]).square().mean()
        losses.append(value.item())
        gradients.extend(torch.autograd.grad(value, change, retain_graph=True))
        return value

    config = ClipSvd(lr=parameters["lr"], steps=parameters["steps"], batch_size=len(tensors["x"]))._train_config(1)
    train([change], loss, len(tensors["x"]), 1, config)
    expected = {
        name: torch.cat([tensors[f"{name}.{letter}"] for letter in layers[0]]) for name in ("gradient", "trained")
    }
    torch.testing.assert_close(torch.tensor(losses, dtype=torch.float64), tensors["losses"])
    torch.testing.assert_close(gradients[0], expected["gradient"])
    torch.testing.assert_close(singular + change.detach(), expected["trained"])


# --- towers


@pytest.mark.parametrize("name", ["ViT-B-32", "SigLIP", "lite", "tiny"])
def test_each_layer_has_its_mlp(name, opened):
    for network in tower_networks(opened(name)).values():
        layers = attention_layers(network, mlp=True)
        assert len(layers) == len(attention_layers(network))
        for layer in layers:
            width = len(layer["q"].values)
            assert "".join(sorted(layer)) == "dkoquv"
            assert layer["u"].values.shape == layer["d"].values.T.shape == (4 * width, width)
            assert layer["u"].module is not layer["d"].module
        assert len({id(layer[letter].module) for layer in layers for letter in "ud"}) == 2 * len(layers)


def test_about_as_many_numbers_as_the_paper_says(monkeypatch):
    with torch.device("meta"):  # shapes alone
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    towers = {"image": model.visual, "text": model.transformer}
    monkeypatch.setattr(tower_tuner, "tower_networks", lambda twin: towers)
    layers = ClipSvd()._tower_parts(None)
    assert {tower: len(each) for tower, each in layers.items()} == {"image": 8, "text": 8}
    share = sum(map(count_singular_values, layers.values())) / sum(weight.numel() for weight in model.parameters())
    assert share == pytest.approx(0.0004, rel=0.05)


# --- from pictures to answers


def test_only_the_matrices_that_were_asked_for_change(model, tiny):
    fitted = model(ClipSvd(towers="text", matrices="vu", steps=4)).fit(*squares())
    for name, network in tower_networks(fitted.encoder_).items():
        (before,), (after,) = (attention_layers(each, mlp=True) for each in (tower_networks(tiny)[name], network))
        changed = {letter for letter in before if not torch.equal(before[letter].values, after[letter].values)}
        assert changed == (set("vu") if name == "text" else set())


# --- beside other heads, and what is wrong is told


def test_steps_are_those_of_the_recipe():
    config = ClipSvd()._train_config(16)
    assert config.steps == 16 * tower_tuner.STEPS_PER_SHOT
    assert (config.optimizer, config.schedule, config.weight_decay) == ("adamw", "cosine", 0.0)
    assert config.learning_rate(10**6 - 1, 1, 10**6) == pytest.approx(1e-6)
