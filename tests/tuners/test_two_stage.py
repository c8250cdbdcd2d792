"""2SFS: both stages against the authors' code, a head of known and new classes, and a fit killed between the stages."""

import dataclasses

import numpy as np
import open_clip
import pytest
import torch
from torch import nn

from clipadapter.encoders import EncoderInfo, open_tunable_copy
from clipadapter.encoders.open_clip import OpenClipEncoder
from clipadapter.heads import TextFeatures
from clipadapter.testing import check_tower
from clipadapter.tuners import tower_tuner
from clipadapter.tuners.tower_tuner import class_embeddings, tower_networks
from clipadapter.tuners.two_stage import TwoStage, block_norms, read_norms, set_norms
from clipadapter.utils.files import default_cache_dir
from clipadapter.utils.pixels import PixelSpec

from .coloured_squares import squares
from .golden_figures import golden


@pytest.fixture
def create_fast():
    return lambda **params: TwoStage(**{"lr": 0.03, "steps": 60, **params})


@pytest.fixture(scope="module")
def figures():
    return golden("two_stage_fewshot")


@pytest.fixture
def use_orders(monkeypatch):
    """A function that makes training take the rows of each epoch in a given order."""

    def use(orders):
        remaining = iter(orders)
        monkeypatch.setattr(torch, "randperm", lambda n, generator: next(remaining))

    return use


# --- the first stage, against the authors' code

PREFIX = {"image": "visual.transformer.resblocks", "text": "transformer.resblocks"}


def golden_encoder(tensors, scale):
    """The tiny CLIP whose weights the figures come with; its texts are the numbers of rows of tokens."""
    vision = {"image_size": 8, "layers": 2, "width": 32, "patch_size": 4, "head_width": 16}
    text = {"context_length": 7, "vocab_size": 20, "width": 32, "heads": 2, "layers": 2}
    with torch.random.fork_rng(devices=[]):
        model = open_clip.CLIP(32, vision, text, quick_gelu=True).eval().requires_grad_(False)
    weights = {name.removeprefix("tower."): value for name, value in tensors.items() if name.startswith("tower.")}
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    model.load_state_dict(weights)
    encoder = object.__new__(OpenClipEncoder)
    encoder.info = EncoderInfo("golden", 32, 8, scale, None, "", "golden", "")
    encoder.device, encoder._model = "cpu", model
    encoder.pixels = PixelSpec(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "shortest", "bilinear")
    encoder._tokenizer = lambda texts, context_length=7: torch.stack(
        [tensors["s1_tokens"][int(text) if text.isdigit() else 0] for text in texts]
    )
    return encoder


@pytest.fixture
def stage1(figures, use_orders, monkeypatch):
    """The first stage on the authors' inputs: its tuner, losses, first gradients, and raw features by what it tuned."""
    tensors, parameters = figures
    facts, pixels = parameters["stage1"], tensors["s1_images"].float()
    losses, gradients = [], {}
    # Squares of bytes can't hold the authors' pictures: each has its number as its bytes.
    n = len(pixels)
    numbers = np.broadcast_to(np.arange(n, dtype=np.uint8)[:, None, None, None, None], (n, 1, 8, 8, 3))
    monkeypatch.setattr(
        tower_tuner, "run_squares", lambda tower, some, device: tower.module(pixels[some[:, 0, 0, 0].tolist()])
    )
    cross_entropy, attach = tower_tuner.cross_entropy, TwoStage._attach

    def recorded(*args):
        losses.append(cross_entropy(*args))
        return losses[-1]

    def attach_and_record(tuner, *args):
        trainable = attach(tuner, *args)
        for name, values in trainable.arrays.items():

            def keep_first(gradient, name=name):  # a hook that returns something changes the gradient
                gradients.setdefault(name, gradient.clone())

            values.register_hook(keep_first)
        return trainable

    monkeypatch.setattr(tower_tuner, "cross_entropy", recorded)
    monkeypatch.setattr(TwoStage, "_attach", attach_and_record)
    use_orders(tensors["s1_orders"])
    encoder = golden_encoder(tensors, float(facts["logit_scale"]))
    # 10 steps, since the first stage has 60 % of them.
    settings = {"lr": facts["lr"], "weight_decay": facts["wd"], "batch_size": facts["bs"], "steps": 10}
    assert int(0.6 * settings["steps"]) == facts["total"]
    labels, prompts = [str(label) for label in tensors["s1_labels"].tolist()], [str(k) for k in range(facts["K"])]
    tuner = TwoStage(checkpoint=None, **settings).tune(encoder, numbers, labels, {name: [name] for name in prompts})
    tuned = tuner.tuned(encoder)
    with torch.no_grad():
        features = tuned._model.encode_image(pixels), tuned.encode_text(prompts)
    return tuner, losses, gradients, features


def norms_in_order(tensors, prefix, tower):
    """The authors' values of the norms of a tower in the order of ours."""
    names = [
        f"{prefix}.{PREFIX[tower]}.{block}.{norm}.{kind}"
        for block in range(2)
        for norm in ("ln_1", "ln_2")
        for kind in ("weight", "bias")
    ]
    return torch.cat([tensors[name] for name in names])


def test_the_first_stage_gives_the_losses_gradients_norms_and_features_of_the_authors(figures, stage1):
    (tensors, _), (tuner, losses, gradients, features) = figures, stage1
    torch.testing.assert_close(torch.stack(losses).detach(), tensors["s1_losses"], rtol=0, atol=1e-5)
    for tower in ("image", "text"):
        gradient, after = (norms_in_order(tensors, f"s1_{part}", tower) for part in ("grad", "after"))
        torch.testing.assert_close(gradients[f"{tower}_norms_"], gradient, rtol=0, atol=1e-5)
        torch.testing.assert_close(getattr(tuner, f"{tower}_norms_"), after, rtol=0, atol=1e-5)
    for found, wanted in zip(features, ("image", "text"), strict=True):
        torch.testing.assert_close(found, tensors[f"s1_{wanted}_features_after"], rtol=0, atol=2e-4)


# --- the second stage, against the authors' code


def fit_stage2(figures, use_orders, suffix, **changes):
    """The second stage on the authors' features in float64."""
    tensors, parameters = figures
    facts = parameters["stage2"]
    use_orders(tensors["epoch_orders"])
    base = tensors["classifier_class_order"].tolist()
    lr = facts["lr_fast" if suffix else "lr"]
    # 30 steps, since the second stage has 40 % of them.
    head = TwoStage(**{"lr": lr, "weight_decay": facts["weight_decay"], "batch_size": facts["batch"], "steps": 30})
    head.set_params(**changes)
    head.text_norms_ = torch.ones(1)  # what a first stage would have learned; the features are given
    text = TextFeatures([f"{k:02}" for k in range(6)], tensors["text_raw"].double()[base].numpy(), facts["logit_scale"])
    y = [f"{row:02}" for row in tensors["support_rows"].tolist()]
    return head.fit(tensors["support_raw"].double().numpy(), y, text=text)


@pytest.mark.parametrize("suffix", ["", "_fast"])
def test_the_second_stage_gives_the_classifier_and_logits_of_the_authors(suffix, figures, use_orders):
    tensors, _ = figures
    head = fit_stage2(figures, use_orders, suffix)
    torch.testing.assert_close(head.weight_, tensors[f"f64_classifier_step12{suffix}"], rtol=1e-9, atol=1e-12)
    found = torch.from_numpy(head.logits(tensors["query_raw"].double().numpy()))
    torch.testing.assert_close(found, tensors[f"f64_logits_base{suffix}"], rtol=1e-9, atol=1e-9)


def test_known_classes_keep_their_trained_vectors_and_new_ones_have_their_text(figures, use_orders):
    tensors, parameters = figures
    head = fit_stage2(figures, use_orders, "_fast")
    base = tensors["classifier_class_order"].tolist()
    name_of = {k: f"{base.index(k):02}" if k in base else f"new {k}" for k in range(9)}
    order = tensors["category_list"].tolist()
    text = TextFeatures(
        [name_of[k] for k in order], tensors["text_raw"].double()[order].numpy(), parameters["stage2"]["logit_scale"]
    )
    other = head.for_classes(text)
    columns = [list(other.classes_).index(name_of[k]) for k in order]
    found = torch.from_numpy(other.logits(tensors["query_raw"].double().numpy())[:, columns])
    torch.testing.assert_close(found, tensors["f64_logits_selective_fast"], rtol=1e-9, atol=1e-9)
    assert list(head.classes_) == sorted(name_of[k] for k in base)


def test_steps_are_those_of_the_paper():
    """300 for each shot per class; the first stage has the whole number below 60 % of them."""
    assert [TwoStage()._stage_steps(shots) for shots in (1, 4, 16)] == [(180, 120), (720, 480), (2880, 1920)]
    config = TwoStage()._train_config(16)
    assert (config.optimizer, config.schedule, config.lr, config.weight_decay) == ("adamw", "cosine", 2e-4, 1e-2)
    assert config.min_lr == 1e-6
    # The released loop breaks at its number of steps, in the middle of an epoch, whose last batch may have one row.
    assert (config.count_steps(33), config.count_epochs(33), config.steps_per_epoch(33)) == (2880, 1440, 2)
    assert TwoStage(steps=12)._train_config(1).count_steps(97) == 7


# --- the norms


@pytest.mark.parametrize(
    ("name", "image", "text"), [("ViT-B-32", 8, 4), ("SigLIP", 6, 4), ("lite", 0, 12), ("RN50", 0, 4), ("tiny", 2, 2)]
)
def test_each_block_has_two_norms(name, image, text, opened):
    norms = {tower: block_norms(network) for tower, network in tower_networks(opened(name)).items()}
    assert {tower: len(each) for tower, each in norms.items()} == {"image": image, "text": text}


@pytest.mark.parametrize(("norms", "image", "text"), [("blocks", 8, 4), ("all", 8 + 2, 4 + 1)])
def test_norms_before_and_after_the_blocks_are_tuned_if_all_are_asked_for(norms, image, text, opened):
    twin = open_tunable_copy(opened("ViT-B-32"))
    found = TwoStage(norms=norms)._tower_parts(twin)
    assert {tower: len(each) for tower, each in found.items()} == {"image": image, "text": text}
    assert set(TwoStage(norms="all")._tower_parts(open_tunable_copy(opened("RN50")))) == {"text"}


def test_norms_without_a_bias_or_values_are_no_trap():
    norms = [nn.LayerNorm(4, bias=False), nn.LayerNorm(3)]
    values = torch.arange(10.0)
    set_norms(norms, values)
    assert torch.equal(read_norms(norms), values)


def test_a_tuned_text_tower_passes_every_check(model):
    check_tower(model(TwoStage(steps=4)).fit(*squares()).encoder_)


# --- a fit that was killed


def test_a_fit_that_was_killed_after_the_first_stage_does_not_repeat_it(model, monkeypatch):
    def head():
        return TwoStage(steps=10, checkpoint=0.0)

    files = default_cache_dir() / "training"
    expected = model(head()).fit(*squares()).head_.state()
    assert not list(files.glob("*.safetensors"))

    def stop(self, shots):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TwoStage, "_fit", stop)
        with pytest.raises(KeyboardInterrupt):
            model(head()).fit(*squares())
    assert len(list(files.glob("*.safetensors"))) == 1
    steps, attach = [], TwoStage._attach

    def counted(self, *args):
        trainable = attach(self, *args)
        return dataclasses.replace(trainable, start_step=lambda: (steps.append(1), trainable.start_step()))

    monkeypatch.setattr(TwoStage, "_attach", counted)
    resumed = model(head()).fit(*squares()).head_.state()
    assert not steps
    assert not list(files.glob("*.safetensors"))
    assert all(np.array_equal(expected[name], resumed[name]) for name in expected)  # the same sums in the same order


# --- beside other heads, and what is wrong is told


def test_class_vectors_of_the_first_stage_are_those_that_the_second_starts_from(model):
    """The mean of normalised prompts, by the tuned text tower."""
    fitted = model(TwoStage(steps=4, lr=1e-3), templates=["a {} square", "a photo of {}"]).fit(*squares())
    prompts = {name: [f"a {name} square", f"a photo of {name}"] for name in fitted.class_names_}
    with torch.no_grad():
        vectors = class_embeddings(fitted.encoder_, prompts, frozen=False)()
    torch.testing.assert_close(vectors, torch.tensor(fitted.text_.embeddings), rtol=1e-4, atol=1e-5)
