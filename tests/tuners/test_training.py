"""The training loop as the tuners use it: it can be killed and watched."""

import hashlib
import os
import signal
import sys
from time import sleep

import pytest
import torch

from clipadapter.errors import InputError
from clipadapter.heads.training import Checkpoint, TrainConfig, digest_of, train
from clipadapter.testing import toy_features
from clipadapter.tuners.coop import CoOp
from clipadapter.utils.files import default_cache_dir


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return default_cache_dir() / "training"


def config(optimizer="sgd", **changes):
    values = {"weight_decay": 0.01, "schedule": "cosine-epoch", "warmup_epochs": 1, "epochs": 6}
    values |= {"lr": 0.1, "steps": 1, "batch_size": 4, "seed": 0, "progress": False, **changes}
    return TrainConfig(optimizer, **values)


TARGETS = torch.randn(10, 3, 5, generator=torch.Generator().manual_seed(0))


def problem():
    weight = torch.zeros(5, requires_grad=True)
    return weight, lambda rows, views: (TARGETS[rows, views] - weight).square().sum(dim=1).mean()


def off():
    return Checkpoint("off", None)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("optimizer", "averaged"), [("sgd", False), ("adamw", False), ("adam", True)])
@pytest.mark.parametrize("at", [1, 2, 5, 11])
def test_what_goes_on_ends_as_what_was_never_stopped(optimizer, averaged, at, cache):
    options = {"epoch_weights": [0.1, 0.2, 0.3, 0.2, 0.1, 0.1] if averaged else None}
    whole, loss = problem()
    expected = train([whole], loss, 10, 3, config(optimizer), checkpoint=off(), **options)
    first, loss = problem()
    left = [at]

    def dies(rows, views):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return loss(rows, views)

    with pytest.raises(Killed):
        train([first], dies, 10, 3, config(optimizer), checkpoint=Checkpoint("a", 0.0), **options)
    again, loss = problem()
    steps = []

    def counted(rows, views):
        steps.append(1)
        return loss(rows, views)

    assert train([again], counted, 10, 3, config(optimizer), checkpoint=Checkpoint("a", 0.0), **options) == expected
    assert torch.equal(again, whole)
    assert len(steps) == 12 - at
    assert not list(cache.iterdir())


@pytest.mark.parametrize("damage", ["cut", "altered", "empty", "shapes"])
def test_a_damaged_checkpoint_is_not_used(damage, cache):
    whole, loss = problem()
    expected = train([whole], loss, 10, 3, config(), checkpoint=off())
    other = torch.zeros(6 if damage == "shapes" else 5, requires_grad=True)
    kept = Checkpoint("a", 0.0)
    with pytest.raises(InputError):
        # A loss that ends it after some steps would remove the file: keep a copy of what was written.
        writes = []
        kept.remove = lambda: writes.append(kept.path.read_bytes())
        values = iter([1.0, 1.0, 1.0, float("nan")])
        train([other], lambda rows, views: other.sum() + next(values), 10, 3, config(), checkpoint=kept)
    (data,) = writes
    bad = {"cut": data[: len(data) // 2], "altered": data[:-9] + b"\x01" + data[-8:], "empty": b"", "shapes": data}
    kept.path.write_bytes(bad[damage])
    again, loss = problem()
    assert train([again], loss, 10, 3, config(), checkpoint=Checkpoint("a", 0.0)) == expected
    assert torch.equal(again, whole)


def test_nothing_is_written_before_its_time_and_a_folder_that_cant_be_written_costs_no_result(cache):
    weight, loss = problem()
    train([weight], loss, 10, 3, config(), checkpoint=Checkpoint("a", 30.0))
    assert not cache.exists()
    cache.parent.mkdir(parents=True)
    cache.write_text("a file, not a folder")
    assert train([weight], loss, 10, 3, config(), checkpoint=Checkpoint("a", 0.0)) > 0


class Slow(CoOp):
    """CoOp that prints and waits in each step."""

    seconds_per_step = 0.0

    def _loss(self, batch):
        sys.stdout.write("step\n")
        sys.stdout.flush()
        sleep(self.seconds_per_step)
        return super()._loss(batch)


def slow_fit(seconds_per_step):
    """One fit, which prints a digest of what it learned at its end."""
    X, y, text = toy_features((8, 8, 8), noise=2.0)
    views = X[:, None].repeat(3, axis=1) * [[[1.0], [1.01], [0.99]]]
    head = Slow(n_ctx=4, epochs=8, batch_size=7, checkpoint=0.0)
    head.seconds_per_step = seconds_per_step
    head.fit(views, y, text=text)
    learned = head.context_.numpy().tobytes() + head.weight_.numpy().tobytes() + repr(head.loss_).encode()
    sys.stdout.write(f"done {hashlib.sha256(learned).hexdigest()}\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # other threads: none of theirs is needed in the child
def test_a_fit_that_was_killed_goes_on_to_the_same_result(cache, capsys):
    """The process that is killed is another one; all else runs here."""
    slow_fit(0.0)
    lines = capsys.readouterr().out.split("\n")
    steps, expected = lines.count("step"), lines[-2]
    assert expected.startswith("done")
    assert not list(cache.iterdir())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        sys.stdout = os.fdopen(1, "w")
        slow_fit(0.05)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert [lines.readline() for _ in range(9)] == ["step\n"] * 9
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(cache.glob("*.safetensors"))) == 1
    slow_fit(0.0)
    lines = capsys.readouterr().out.split("\n")
    assert lines[-2] == expected
    assert 0 < lines.count("step") <= steps - 7
    assert not list(cache.glob("*.safetensors"))


def test_a_loss_that_is_not_finite_stops_with_advice(cache):
    weight, loss = problem()
    with pytest.raises(InputError, match=r"diverged in epoch 2: the loss is inf; try a smaller lr than 1e\+30"):
        train([weight], loss, 10, 3, config(lr=1e30), checkpoint=Checkpoint("a", 0.0))
    assert not list(cache.iterdir())


def test_the_digest_is_of_all_that_shapes_the_result():
    X, y, text = toy_features()
    seen = []

    class Recording(CoOp):
        def _digest(self, shots, tower):
            seen.append(super()._digest(shots, tower))
            return seen[-1]

    for head, features in (
        (Recording(epochs=1), X),
        (Recording(epochs=1, progress=False, checkpoint=5.0, memory=1.0), X),
        (Recording(epochs=2), X),
        (Recording(epochs=1, seed=1), X),
        (Recording(epochs=1), X + 1e-3),
    ):
        head.fit(features, y, text=text)
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4
    ones = torch.ones(6)  # arrays of other shapes are told apart
    assert len(set(map(digest_of, ([ones], [ones.view(2, 3)], [ones.double()], [ones[:5]])))) == 4


def test_the_weighted_sum_over_epochs_is_kept():
    weight, loss = problem()
    after = []

    def watched(rows, views):
        after.append(weight.detach().clone())
        return loss(rows, views)

    weights = [0.1, 0.0, 0.2, 0.3, 0.4, 0.0]
    train([weight], watched, 10, 3, config(), checkpoint=off(), epoch_weights=weights)
    # Two steps of four rows make an epoch: what a step starts from is what the one before has made.
    expected = sum(each * after[2 * (i + 1)] for i, each in enumerate(weights[:5]))
    torch.testing.assert_close(weight.detach(), expected)


def test_the_bar_shows_loss_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr("clipadapter.heads.training.BRIEF_SECONDS", 0.0)
    weight, loss = problem()
    train([weight], lambda *rows: sleep(0.02) or loss(*rows), 10, 3, config(progress=True), checkpoint=off())
    shown = capsys.readouterr().err
    assert "loss=" in shown and "<" in shown
