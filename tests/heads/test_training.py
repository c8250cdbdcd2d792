"""The training loop: its steps are those of torch's own optimizers, and memory that is freed is used again."""

import math
import subprocess
import sys

import pytest
import torch

from clipadapter.heads import create_head, list_heads, trained_head
from clipadapter.heads.training import Optimizer, TrainConfig, gather_views, keep_freed_memory, train
from clipadapter.testing import toy_features


def config(**changes):
    values = {
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_epochs": 0,
        "epochs": None,
        "steps": 10,
        "batch_size": 4,
        "seed": 0,
        "progress": False,
    }
    return TrainConfig(**{**values, **changes})


def record(n, n_views=1, **changes):
    """Rows and views of every step."""
    seen = []
    weight = torch.zeros(1, requires_grad=True)

    def loss(rows, views):
        seen.append((rows.tolist(), views.tolist()))
        return (weight - 1).square().sum()

    train([weight], loss, n, n_views, config(**changes))
    return seen, weight


@pytest.mark.parametrize(
    ("n", "batches", "changes"),
    [
        (8, [4] * 50, {"steps": 50}),
        (8, [4] * 52, {"steps": 51}),
        (8, [4] * 6, {"epochs": 3}),
        (10, [4, 4], {"epochs": 1}),
        (10, [4, 4, 2], {"epochs": 1, "drop_last": False}),
        # 3 batches an epoch: 50 steps are 17 epochs, but 20 are the fewest; 100 are 34 epochs.
        (10, [4, 4, 2] * 20, {"steps": 50, "drop_last": False}),
        (10, [4, 4, 2] * 34, {"steps": 100, "drop_last": False}),
        (31, [31] * 50, {"epochs": 50, "batch_size": 32, "drop_last": False}),
        (65, [32, 32, 1] * 50, {"epochs": 50, "batch_size": 32, "drop_last": False}),
    ],
)
def test_epochs_and_batches_are_as_many_as_were_asked_for_and_an_epoch_takes_each_row_once(n, batches, changes):
    seen = [rows for rows, _ in record(n, **changes)[0]]
    assert list(map(len, seen)) == batches
    first_epoch = [row for rows in seen[: config(**changes).steps_per_epoch(n)] for row in rows]
    assert len(set(first_epoch)) == len(first_epoch)


@pytest.mark.parametrize("steps", [7, 9])
def test_without_whole_epochs_training_ends_after_the_steps_and_the_rate_falls_over_them(steps):
    changes = {"steps": steps, "min_epochs": 1, "drop_last": False, "whole_epochs": False}
    seen, _ = record(10, **changes)
    assert [len(batch) for batch, _ in seen] == [4, 4, 2, 4, 4, 2, 4, 4, 2][:steps]
    made = config(schedule="cosine", lr=1.0, **changes)
    rates = [made.learning_rate(step, 3, 3) for step in range(steps)]
    assert rates == pytest.approx([0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)])
    assert config(schedule="cosine", lr=1.0).learning_rate(50, 5, 20) == pytest.approx(0.5)  # half of whole epochs


def test_gradient_descent_by_hand_and_cosine_by_epoch_with_warm_up_the_recipe_of_coop():
    # From 0 the gradients 2 (w - 1) are -2 and -1.6: w is 0.2, and then 0.2 + 0.1 (1.6 + 0.9 x 2) with momentum.
    assert record(4, epochs=2)[1].item() == pytest.approx(0.54)
    made = config(schedule="cosine-epoch", warmup_epochs=1, lr=2e-3)
    rates = [made.learning_rate(epoch * 5, 5, 200) for epoch in range(200)]
    assert rates[0] == 1e-5
    assert rates[1] == 2e-3
    assert rates[101] == pytest.approx(1e-3)
    assert rates[2] == pytest.approx(2e-3 * 0.5 * (1 + math.cos(math.pi / 200)))


def test_views_are_drawn_from_all_or_with_more_views_than_epochs_one_for_each_epoch_and_never_the_plain_one():
    drawn = {view for _, batch in record(4, n_views=3, epochs=20)[0] for view in batch}
    assert drawn == {0, 1, 2}
    by_epoch, single = (record(8, n_views=count, epochs=3)[0] for count in (4, 1))
    assert [set(views) for _, views in by_epoch] == [{1}, {1}, {2}, {2}, {3}, {3}]
    assert [rows for rows, _ in by_epoch] == [rows for rows, _ in single]
    assert {view for _, views in record(8, n_views=9, epochs=3)[0] for view in views} == {1, 2, 3}
    views = torch.arange(60.0).view(5, 3, 4)
    rows, view = torch.tensor([4, 0, 4, 2]), torch.tensor([0, 2, 1, 1])
    assert torch.equal(gather_views(views, rows, view), views[rows, view])
    assert torch.equal(gather_views(views[:, :1], rows, torch.zeros_like(rows)), views[rows, 0])


PASSES = [name for name in list_heads() if create_head(name).planned_epochs(torch.arange(3)) is not None]


@pytest.mark.parametrize("shots", [1, 4])
@pytest.mark.parametrize("name", PASSES)
def test_a_head_makes_as_many_epochs_as_it_says(name, shots, monkeypatch):
    X, y, text = toy_features(counts=(shots,) * 3)
    made = []

    def recorded(parameters, loss, n, n_views, config, **options):
        made.append(config.count_epochs(n))
        return 0.0

    monkeypatch.setattr(trained_head, "train", recorded)
    head = create_head(name)
    head.fit(X, y, text=text)
    labels = torch.tensor([sorted(set(y)).index(label) for label in y])
    assert head.planned_epochs(labels) in made


def quadratic(seed=0):
    """Two parameters, one that the loss does not know, and the loss."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (3, 4), (5,), (2,)
    parameters = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    return parameters, lambda: parameters[0].pow(4).sum() + (parameters[0].sum() * parameters[1]).square().sum()


@pytest.mark.parametrize(("decay", "eps"), [(0.0, 1e-8), (0.3, 1e-4)])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_steps_are_torchs_and_without_any_gradient_nothing_moves(name, decay, eps):
    (ours, our_loss), (theirs, their_loss), (start, _) = quadratic(), quadratic(), quadratic()
    optimizer = Optimizer(name, ours, weight_decay=decay, eps=eps)
    optimizer.step(0.1)
    assert all(torch.equal(one, first) for one, first in zip(ours, start, strict=True))
    optimizer = Optimizer(name, ours, weight_decay=decay, eps=eps)
    kind, options = {
        "adam": (torch.optim.Adam, {"eps": eps}),
        "adamw": (torch.optim.AdamW, {"eps": eps}),
        "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    }[name]
    expected = kind(theirs, weight_decay=decay, foreach=False, **options)
    for rate in (0.05, 0.02, 0.03, 0.01):
        our_loss().backward()
        optimizer.step(rate)
        expected.param_groups[0]["lr"] = rate
        expected.zero_grad()
        their_loss().backward()
        expected.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
        assert torch.equal(one, first) == (len(one) == 2)  # the one that the loss does not know


FIT_ALL = """
import sys, warnings
import numpy as np
from clipadapter.heads import TextFeatures, create_head, list_heads

warnings.simplefilter("ignore")
rng, names = np.random.default_rng(0), np.array(["ant", "bee", "cow"])
text = TextFeatures(names.tolist(), rng.normal(size=(3, 16)))
X, y = rng.normal(size=(12, 16)), names.repeat(4)
heads = [head for head in map(create_head, list_heads()) if not (head.tunes_encoder or head.needs_tower)]
for head in heads:
    head.set_params(**{name: 2 for name in ("epochs", "steps", "folds") if name in head.get_params()})
    head.fit(X, y, text=text, unlabelled=X if head.transductive else None).predict(X)
    for library in {"sklearn.base", "torch._dynamo"} & set(sys.modules):
        print(head, library)
        del sys.modules[library]
print(len(heads))
"""


FIT = """
import resource
import torch
from clipadapter.heads import TextFeatures, create_head

torch.set_num_threads(1)
X = torch.randn(12, 1024, generator=torch.Generator().manual_seed(0)).numpy()
y = [str(i % 3) for i in range(12)]
text = TextFeatures(["0", "1", "2"], X[:3], 100.0)
create_head("clip-adapter", alpha=0.2, steps=5).fit(X, y, text=text)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
create_head("clip-adapter", alpha=0.2, steps=50).fit(X, y, text=text)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


ALLOCATOR = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def test_a_step_asks_the_system_for_no_memory_and_no_fit_imports_scikit_learn_or_torchs_compiler(monkeypatch):
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", FIT + FIT_ALL], capture_output=True, text=True, check=True)
    faults, *imports, n = done.stdout.splitlines()
    assert (imports, int(n) > 20) == ([], True)
    # 50 steps with gradients of 2 MiB are 512 pages each if the allocator gives them back.
    assert int(faults) < 2_500 or sys.platform != "linux"


@pytest.mark.parametrize("name", ALLOCATOR)
def test_an_allocator_that_the_environment_sets_is_left_as_it_is(name, monkeypatch):
    monkeypatch.setenv(name, "131072")
    monkeypatch.setattr("ctypes.CDLL", None)  # to call it would be an error
    assert not keep_freed_memory.__wrapped__()
