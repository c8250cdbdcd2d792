"""Steps against those of torch's own optimizers, in another order of the same arithmetic."""

import subprocess
import sys

import pytest
import torch

from clipadapter.heads.training import MOMENTUM, Optimizer


def quadratic(seed=0):
    """Two parameters, one that the loss does not know, and the loss."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (3, 4), (5,), (2,)
    parameters = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    return parameters, lambda: parameters[0].pow(4).sum() + (parameters[0].sum() * parameters[1]).square().sum()


RATES = [0.05, 0.02, 0.03, 0.01]


def run(optimizer, loss):
    for rate in RATES:
        loss().backward()
        optimizer.step(rate)


def run_torch(optimizer, loss):
    for rate in RATES:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def check_same(ours, theirs):
    start = quadratic()[0]
    for one, other, first in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
        assert torch.equal(one, first) == (len(one) == 2)  # the one that the loss does not know


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize(("decay", "eps"), [(0.0, 1e-8), (0.3, 1e-4)])
def test_adam_makes_torchs_steps(decoupled, decay, eps):
    (ours, our_loss), (theirs, their_loss) = quadratic(), quadratic()
    name, kind = ("adamw", torch.optim.AdamW) if decoupled else ("adam", torch.optim.Adam)
    run(Optimizer(name, ours, weight_decay=decay, eps=eps), our_loss)
    run_torch(kind(theirs, weight_decay=decay, eps=eps, foreach=False), their_loss)
    check_same(ours, theirs)


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_sgd_makes_torchs_steps(decay):
    (ours, our_loss), (theirs, their_loss) = quadratic(), quadratic()
    run(Optimizer("sgd", ours, weight_decay=decay), our_loss)
    run_torch(torch.optim.SGD(theirs, weight_decay=decay, momentum=MOMENTUM, foreach=False), their_loss)
    check_same(ours, theirs)


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


def test_no_fit_imports_scikit_learn_or_torchs_compiler():
    done = subprocess.run([sys.executable, "-c", FIT_ALL], capture_output=True, text=True, check=True)
    *imports, n = done.stdout.splitlines()
    assert (imports, int(n) > 20) == ([], True)


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_without_any_gradient_nothing_moves(kind):
    parameters, _ = quadratic()
    Optimizer(kind, parameters).step(0.1)
    assert all(torch.equal(one, other) for one, other in zip(parameters, quadratic()[0], strict=True))
