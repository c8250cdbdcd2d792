"""CLIP-LoRA's layers against the authors' code, and tuned encoders from pictures to files and back."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from clipadapter import FewShotClassifier
from clipadapter.bench import compare
from clipadapter.classifier import encoder_choice as encoder_module
from clipadapter.data import Dataset, Sample
from clipadapter.encoders import attention_layers, open_tunable_copy
from clipadapter.errors import ImageError, InputError
from clipadapter.features import encode_classes
from clipadapter.heads.zero_shot import ZeroShot
from clipadapter.tuners import tower_tuner
from clipadapter.tuners.clip_lora import ClipLora, SeededDropout, attach_update, merge_update
from clipadapter.tuners.tower_tuner import SplitAttention, class_embeddings, image_features

from .coloured_squares import COLOURS, picture, squares
from .golden_figures import golden


@pytest.fixture
def create_fast():
    return lambda: ClipLora(lr=0.03, steps=100)


def no_drop(rate=0.0):
    return SeededDropout(rate, torch.Generator().manual_seed(0), "cpu")


# --- the layer, against the authors' code


class Block(nn.Module):
    """What CLIP's transformers are made of, as far as attention goes."""

    def __init__(self, tensors, heads):
        super().__init__()
        width = len(tensors["out_proj_bias"])
        self.ln_1, self.attn = nn.Identity(), nn.MultiheadAttention(width, heads)
        self.attn.load_state_dict(
            {name.replace("out_proj_", "out_proj."): tensors[name] for name in tensors if "_proj_" in name}
        )
        self.requires_grad_(False)

    def forward(self, x, mask=None):
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]


@pytest.fixture
def case():
    tensors, parameters = golden("clip_lora")
    return Block(tensors, parameters["heads"]), tensors


def update_of(tensors, letters):
    return tuple(torch.stack([tensors[f"lora_{part}_{letter}"] for letter in letters])[None] for part in "AB")


@pytest.mark.parametrize("merged", [False, True], ids=["beside", "merged"])
@pytest.mark.parametrize(
    ("name", "letters", "alpha"),
    [
        *((f"out_qkv{way}", "qkv", 1) for way in ("", "_causal", "_eval_dropout")),
        *(("out_qv_alpha4", "qv", 4), ("out_qkvo", "qkvo", 1)),
    ],
)
def test_a_layer_answers_as_the_authors(name, letters, alpha, merged, case):
    block, tensors = case
    update, layers = update_of(tensors, letters), attention_layers(block)
    if merged:
        merge_update(layers, letters, *update, alpha)
    else:
        attach_update(layers, letters, *update, alpha, no_drop())
    mask = torch.full((7, 7), -torch.inf).triu(1) if "causal" in name else None
    tolerance = 1e-4 if name == "out_qv_alpha4" else 1e-5  # values up to 40
    torch.testing.assert_close(block(tensors["x"], mask), tensors[name], rtol=0, atol=tolerance)


def test_gradients_are_the_authors(case):
    block, tensors = case
    a, b = (each.requires_grad_() for each in update_of(tensors, "qkv"))
    attach_update(attention_layers(block), "qkv", a, b, 1, no_drop(1e-9))
    block(tensors["x"]).square().sum().backward()
    for i, letter in enumerate("qkv"):
        torch.testing.assert_close(a.grad[0, i], tensors[f"grad_A_{letter}"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(b.grad[0, i], tensors[f"grad_B_{letter}"], rtol=1e-5, atol=1e-4)


def test_dropout_stands_before_the_update_alone(case):
    block, tensors = case
    a, b = update_of(tensors, "qkv")
    drop = no_drop(0.5)
    drop.start_step()
    attention = block.attn
    attach_update(attention_layers(block), "qkv", a, torch.zeros_like(b), 1, drop)
    torch.testing.assert_close(block(tensors["x"]), tensors["out_base"], rtol=0, atol=1e-5)
    block.attn = attention
    attach_update(attention_layers(block), "qkv", a, b, 1, drop)
    assert isinstance(block.attn, SplitAttention)
    assert (block(tensors["x"]) - tensors["out_qkv"]).abs().max() > 0.01


def test_dropout_keeps_the_mean_and_is_the_same_in_the_same_step():
    drop, again = no_drop(0.25), no_drop(0.25)
    x = torch.ones(20000)
    for each in (drop, again):
        each.start_step()
    first = drop(x)
    assert torch.equal(first, again(x))
    assert sorted(set(first.tolist())) == [0.0, pytest.approx(4 / 3)]
    assert first.mean() == pytest.approx(1.0, abs=0.02)
    drop.start_step()
    assert not torch.equal(drop(x), first)


# --- towers


@pytest.mark.parametrize("name", ["tiny", "lite"])
def test_training_sees_what_the_encoder_sees(name, opened):
    encoder = opened(name)
    images = [picture(60, 40), picture(30, 90)]
    array = np.stack([encoder.tower().pixels.to_square(image) for image in images])[:, None]
    prompts = {"cat": ["a cat", "a photo of a cat"], "dog": ["a dog"]}
    rows, views = torch.arange(2), torch.zeros(2, dtype=torch.int64)
    for frozen in (False, True):
        with torch.no_grad():
            pictures = image_features(encoder, array, frozen)(rows, views)
            texts = class_embeddings(encoder, prompts, frozen)()
        torch.testing.assert_close(pictures, encoder.encode_images(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(texts, torch.tensor(encode_classes(encoder, prompts).embeddings))


# --- from pictures to answers


def test_an_backend_that_is_named_runs_the_tuned_tower_and_is_saved(model, tmp_path):
    fitted = model(precision="bf16").fit(*squares())
    assert fitted.encoder_.info.precision == "bf16"
    again = FewShotClassifier.load(fitted.save(tmp_path / "model"), cache=None)
    assert again.encoder_.info.fingerprint == fitted.encoder_.info.fingerprint
    queries, truth = squares(seed=1)
    assert again.predict(queries) == truth
    plain = FewShotClassifier.load(tmp_path / "model", cache=None, precision="fp32")
    np.testing.assert_allclose(plain.predict_proba(queries), again.predict_proba(queries), atol=0.05)


def test_a_second_fit_begins_with_the_plain_encoder_and_one_that_fails_leaves_no_head(model, tiny):
    fitted = model(ClipLora(lr=0.03, steps=6))
    queries = squares(seed=1)[0]
    first = fitted.fit(*squares()).predict_proba(queries)
    # the same sums in the same order
    np.testing.assert_array_equal(fitted.fit(*squares()).predict_proba(queries), first)
    with pytest.raises(InputError, match="rank"):
        fitted.head.set_params(rank=0)
        fitted.fit(*squares())
    with pytest.raises(InputError, match="not fitted"):
        fitted.predict(queries)
    fitted.head = "zero-shot"
    assert fitted.fit(*squares()).encoder_.info.fingerprint == tiny.info.fingerprint


def test_views_are_used_and_squares_on_disk_give_the_same(model, monkeypatch):
    one, three = (model(ClipLora(steps=4), views=n).fit(*squares()) for n in (1, 3))
    assert not np.array_equal(one.head_.image_b_, three.head_.image_b_)
    assert three.support_.X.ndim == 2  # the answer needs the plain pictures only
    monkeypatch.setattr(encoder_module, "MAX_PIXEL_BYTES_IN_MEMORY", 1)
    first, again = one.head_.state(), model(ClipLora(steps=4), views=1).fit(*squares()).head_.state()
    assert all(np.array_equal(first[name], again[name]) for name in first)  # the same sums in the same order


def test_a_bad_picture_is_left_out_or_told(model, tmp_path):
    images, labels = squares()
    (tmp_path / "bad.jpg").write_bytes(b"")
    head = ClipLora(steps=4)
    fitted = model(head).fit([tmp_path / "bad.jpg", *images], ["red", *labels])
    assert fitted.support_.provenance["skipped"] == [(str(tmp_path / "bad.jpg"), "file is empty")]
    with_it, without = fitted.head_.state(), model(ClipLora(steps=4)).fit(images, labels).head_.state()
    assert all(np.array_equal(with_it[name], without[name]) for name in without)  # the same sums in the same order
    with pytest.raises(ImageError, match="bad.jpg"):
        model(ClipLora(steps=4), strict=True).fit([tmp_path / "bad.jpg", *images], ["red", *labels])


def test_a_tower_that_stays_runs_once(model, monkeypatch):
    runs = []
    run = tower_tuner.run_squares
    monkeypatch.setattr(
        tower_tuner, "run_squares", lambda tower, some, device: (runs.append(len(some)), run(tower, some, device))[1]
    )
    model(ClipLora(towers="text", steps=5)).fit(*squares())
    assert runs == [12]
    model(ClipLora(towers="image", steps=5)).fit(*squares())
    assert runs == [12] + [12] * 5


def test_half_of_the_layers(opened):
    twin = open_tunable_copy(opened("ViT-B-32"))
    found = {layers: ClipLora(layers=layers)._tower_parts(twin)["image"] for layers in ("all", "bottom", "top")}
    assert [id(layer["q"].owner) for layer in found["bottom"] + found["top"]] == [
        id(layer["q"].owner) for layer in found["all"]
    ]
    assert len(found["bottom"]) == len(found["top"]) == 2


# --- beside other heads


def test_it_is_compared_on_the_same_draws(model, tmp_path):
    def dataset(name, each, seed):
        images, labels = squares(each, seed)
        (tmp_path / name).mkdir()
        samples = tuple(Sample(tmp_path / name / f"{i}.png", label, name) for i, label in enumerate(labels))
        for image, sample in zip(images, samples, strict=True):
            Image.fromarray(image).save(sample.path)
        return Dataset(name, tmp_path / name, samples, tuple(COLOURS))

    train, test = dataset("train", 4, 0), dataset("test", 3, 1)
    train.samples[0].path.write_bytes(b"no picture")
    heads = {"zero-shot": ZeroShot(), "lora": ClipLora(lr=0.01, steps=200)}
    records = tmp_path / "runs.jsonl"
    found = compare(model("zero-shot"), train, test, heads, [3], [2], records=records)
    plain, tuned = found.runs
    assert (plain.head, plain.error, tuned.head, tuned.error) == ("zero-shot", None, "lora", None)
    assert plain.rows == tuned.rows
    assert tuned.metrics.accuracy > 0.9 > plain.metrics.accuracy
    assert tuned.method == "clip-lora" and "loss_" in tuned.learned
    again = compare(model("zero-shot"), train, test, heads, [3], [2], records=records)
    assert again.n_new == 0 and again.runs == found.runs


# --- what is wrong is told


def test_what_does_not_go_with_tuning_is_told(model, tiny):
    with pytest.raises(InputError, match=r"squares \(n, v, 32, 32, 3\) of uint8"):
        ClipLora().tune(tiny, np.zeros((2, 1, 16, 16, 3), np.uint8), ["a", "b"], {"a": ["a"], "b": ["b"]})
    images, labels = squares()
    with pytest.raises(InputError, match="grid"):
        model("clip-lora", grid={"rank": [1, 2]}).fit(images, labels)
    with pytest.raises(InputError, match="leave unlabelled out"):
        model().fit(images, labels, unlabelled=images)
    with pytest.raises(InputError, match="a label each that is a class.*green"):
        model().fit(images, labels, class_names=["blue", "red"])
