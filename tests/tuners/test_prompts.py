"""Prompts with open places: put together as hard ones are, exact in parts, no longer than the tower takes."""

import pytest
import torch

from clipadapter.encoders import open_text_tower
from clipadapter.errors import InputError
from clipadapter.tuners.prompt_tuner import Prompts, context_from_words, random_context
from clipadapter.utils.towers import WordTower

from .golden_figures import golden, text_tower

# SigLIP's tokenizer here is one of letters: the first half of them is no number of words.
FAMILIES = [
    (name, token)
    for name in ("tiny", "RN50", "ViT-B-32", "SigLIP", "lite")
    for token in ("end", "middle", "front")
    if (name, token) != ("SigLIP", "middle")
]
NAMES = ["golden retriever", "sea_or_lake", "cat", "ice-cream van, old", "dog"]


@pytest.fixture(scope="module")
def tower():
    return text_tower(*golden("kgcoop_prograd"))


def objective(prompts, context, goal):
    """A loss of about 2 that no symmetry makes flat."""
    return torch.nn.functional.cross_entropy(
        torch.nn.functional.normalize(prompts.class_vectors(context)) @ goal, ORDER
    )


ORDER = torch.tensor([1, 0, 3, 2, 4])


@pytest.mark.parametrize(("name", "token"), FAMILIES)
def test_words_as_context_are_the_hard_prompt(name, token, opened):
    encoder = opened(name)
    tower = open_text_tower(encoder)
    words = {"end": "a photo of a {}.", "middle": "a photo {} of a.", "front": "{} a photo of a."}[token]
    context = context_from_words(tower, "a photo of a")
    prompts = Prompts(tower, ["golden retriever", "sea_or_lake"], len(context), token)
    found = prompts.class_vectors(context)
    wanted = encoder.encode_text([words.format("golden retriever"), words.format("sea or lake")])
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 1e-5


@pytest.mark.parametrize("token", ["end", "middle", "front"])
@pytest.mark.parametrize(
    ("name", "memory"),
    [("tiny", 1.0), *((name, 1e9) for name in ("tiny", "RN50", "ViT-B-32", "SigLIP", "lite"))],
)
def test_a_context_that_is_shared_is_that_of_each_class(name, token, memory, opened):
    tower = open_text_tower(opened(name))
    prompts = Prompts(tower, NAMES, 4, token, memory)
    shared = random_context(prompts, tower.width, 0, False).requires_grad_()
    each = shared.detach().expand(5, -1, -1).clone().requires_grad_()
    goal = torch.randn(5, tower.dim, generator=torch.Generator().manual_seed(0))
    found, wanted = prompts.class_vectors(shared), prompts.class_vectors(each)
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max() < 1e-5
    for vectors in (found, wanted):
        (torch.nn.functional.normalize(vectors) * goal).sum().backward()
    total = each.grad.sum(dim=0)
    assert (shared.grad - total).norm() < 1e-5 * total.norm()


def test_what_all_prompts_begin_with_is_run_once_and_nothing_is_padded(tower):
    prompts = Prompts(tower, NAMES, 4, memory=1.0)
    assert prompts.batch_size(shared=True) == 1
    tokens = []
    hook = tower.network().resblocks[0].mlp.register_forward_pre_hook(lambda _, x: tokens.append(x[0][..., 0].numel()))
    prompts.class_vectors(random_context(prompts, 32, 0, False))
    hook.remove()
    assert tokens == [5, *sorted(int(length) - 5 for length in prompts.lengths)]  # a mark and four vectors


@pytest.mark.parametrize("class_specific", [False, True])
def test_parts_give_the_gradient_of_the_whole(class_specific, tower):
    goal = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    start = 10 * random_context(Prompts(tower, NAMES, 4), 32, 1, class_specific)
    found = []
    for memory in (1e9, 1.0):
        prompts = Prompts(tower, NAMES, 4, memory=memory)
        context = start.clone().requires_grad_()
        value = objective(prompts, context, goal)
        value.backward()
        found.append((prompts.batch_size(not class_specific), value.detach(), context.grad))
    (whole, loss, gradient), (one, again, same) = found
    assert whole >= 5
    assert one == 1
    torch.testing.assert_close(again, loss, rtol=0, atol=1e-6)
    torch.testing.assert_close(same, gradient, rtol=0, atol=1e-6)
    assert gradient.abs().max() > 1e-2


@pytest.mark.parametrize("class_specific", [False, True])
def test_a_budget_is_kept_by_what_a_pass_really_keeps(class_specific, tower):
    prompts = Prompts(tower, NAMES, 4)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    context = random_context(prompts, 32, 0, class_specific).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        whole = prompts.class_vectors(context)
    weights = sum(p.untyped_storage().nbytes() for p in tower.network().parameters())
    assert whole.shape == (5, 24)
    assert (
        sum(kept.values()) <= 5 * prompts.bytes_per_prompt(not class_specific) + weights + 30_000
    )  # its mask and projection


def test_each_row_may_have_a_context_of_its_own(tower):
    prompts = Prompts(tower, NAMES, 2)
    contexts = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([4, 0, 4])
    found = prompts.class_vectors(contexts, classes)
    for i, position in enumerate(classes.tolist()):
        torch.testing.assert_close(found[i], prompts.class_vectors(contexts[i])[position], rtol=0, atol=1e-5)


def test_a_prompt_that_is_too_long_names_its_class_and_words_without_a_token_are_refused(tower):
    with pytest.raises(InputError, match="ctx_init must be words"):
        context_from_words(tower, " ")
    tower = WordTower({"cat": torch.ones(4)}, 4)
    long = " ".join(["word"] * 70)
    assert len(Prompts(tower, ["cat", " ".join(["word"] * 59)], 16)) == 2
    with pytest.raises(InputError, match=f"class '{long}' has .* 16 context vectors.* takes 77: shorten"):
        Prompts(tower, ["cat", long], 16)
    with pytest.raises(InputError, match="takes 77"):
        Prompts(tower, ["cat"], 75)
