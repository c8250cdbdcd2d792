"""SimCLR: the loss in plain loops, the same result in one go or many, and what may go wrong."""

import math
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clipadapter.encoders import create_encoder
from clipadapter.encoders.simclr_network import empty_tower
from clipadapter.errors import ArtifactError, DataError, EncoderUnavailableError, InputError
from clipadapter.pretraining import nt_xent, simclr, train_simclr
from clipadapter.pretraining.simclr import SimClrModel, augment, read_weights, seeded_random

TINY = {"epochs": 2, "batch_size": 5, "size": 16}


@pytest.fixture(scope="module", autouse=True)
def no_sync():
    """Weights of 45 MB are written many times here, and no machine crashes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Nine pictures of noise, one file that is none, and a copy."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (20 + i, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    (folder / "bad.jpg").write_bytes(b"no picture")
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """A training in one go: its folder and what it said."""
    folder = tmp_path_factory.mktemp("encoders") / "whole"
    return folder, train_simclr(pictures, folder, **TINY)


class KilledError(Exception):
    pass


def killed_after(epochs, monkeypatch):
    """Let the training die when it has written its checkpoint so many times."""
    write, count = simclr._write, iter(range(epochs))

    def dying(path, tensors, facts):
        write(path, tensors, facts)
        if next(count) == epochs - 1:
            raise KilledError

    monkeypatch.setattr(simclr, "_write", dying)


def test_nt_xent_in_plain_loops():
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((2, 5, 7))
    rows = [row / math.sqrt(sum(x * x for x in row)) for row in (*first, *second)]
    total = 0.0
    for i, row in enumerate(rows):
        cosines = [sum(a * b for a, b in zip(row, other, strict=True)) for other in rows]
        others = sum(math.exp(cosine / 0.5) for j, cosine in enumerate(cosines) if j != i)
        total -= math.log(math.exp(cosines[(i + 5) % 10] / 0.5) / others)
    assert nt_xent(torch.tensor(first), torch.tensor(second)).item() == pytest.approx(total / 10, rel=1e-12)


def test_the_result_says_what_was_done_and_the_encoder_opens_and_has_learned_something(whole, pictures):
    folder, done = whole
    assert (done.pictures, done.epochs, done.resumed) == (9, 2, 0)
    assert done.skipped == [(str(pictures[-2]), "not an image")]
    assert 0 < done.loss < 2 * math.log(9)
    assert done.encoder == f"simclr:{folder}"
    assert [path.name for path in folder.iterdir()] == ["encoder.safetensors"]
    trained = load_file(folder / "encoder.safetensors")
    start = SimClrModel(0, "cpu", None, 0.1).tower.state_dict()
    assert not torch.equal(trained["conv1.weight"], start["conv1.weight"])
    assert create_encoder(done.encoder).info.image_size == 16


def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(whole, pictures, tmp_path, monkeypatch):
    killed_after(1, monkeypatch)
    with pytest.raises(KilledError):
        train_simclr(pictures, tmp_path / "encoder", **TINY)
    for name in (".checkpoint.safetensors-abcd_123", ".mine.safetensors"):
        (tmp_path / "encoder" / name).write_bytes(b"half-written")
    monkeypatch.undo()
    done = train_simclr(pictures[::-1], tmp_path / "encoder", **TINY)
    assert (done.resumed, done.loss) == (1, whole[1].loss)
    first, second = (folder / "encoder.safetensors" for folder in (whole[0], tmp_path / "encoder"))
    assert first.read_bytes() == second.read_bytes()
    assert {path.name for path in (tmp_path / "encoder").iterdir()} == {"encoder.safetensors", ".mine.safetensors"}


@pytest.mark.parametrize("name", ["encoder.safetensors", "checkpoint.safetensors"])
def test_links_in_the_folder_of_an_encoder_are_not_followed(name, pictures, tmp_path):
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / name).symlink_to(tmp_path / "thesis")
    with pytest.raises(ArtifactError, match="is a link"):
        train_simclr(pictures, tmp_path / "encoder", **TINY)


def global_state():
    numbers = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return random.getstate(), *numbers, torch.get_num_threads()


def test_pictures_that_do_not_fit_into_memory_give_the_same_loss_and_global_state_is_untouched(
    whole, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(simclr, "MAX_CACHED_BYTES", 5000)
    before = global_state()
    assert train_simclr(pictures, tmp_path / "encoder", **TINY).loss == whole[1].loss
    assert global_state() == before


def test_a_finished_encoder_is_not_trained_again_and_other_settings_are_refused(whole, pictures, monkeypatch):
    monkeypatch.setattr(simclr, "SimClrModel", None)
    again = train_simclr(pictures, whole[0], **TINY)
    assert (again.resumed, again.loss) == (2, whole[1].loss)
    with pytest.raises(ArtifactError, match="was made with other epochs, seed"):
        train_simclr(pictures, whole[0], **{**TINY, "epochs": 4, "seed": 2})
    with pytest.raises(ArtifactError, match="was made with other pictures"):
        train_simclr(pictures[:-3], whole[0], **TINY)


def test_a_damaged_checkpoint_and_a_folder_of_other_files_are_refused(pictures, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match="delete it to start again"):
        train_simclr(pictures, tmp_path, **TINY)
    (tmp_path / "checkpoint.safetensors").unlink()
    (tmp_path / "thesis.txt").write_text("important")
    with pytest.raises(ArtifactError, match="holds other files"):
        train_simclr(pictures, tmp_path, **TINY)
    with pytest.raises(ArtifactError, match="is a file"):
        train_simclr(pictures, tmp_path / "thesis.txt", **TINY)


def test_too_few_pictures_are_refused_and_bad_parameters_are_named(pictures, tmp_path):
    with pytest.raises(DataError, match="two different pictures or more, but 1"):
        train_simclr([path for path in pictures if path.name in ("0.png", "copy.png")], tmp_path, **TINY)
    for name, value in {"epochs": 0, "batch_size": 1, "size": 7}.items():
        with pytest.raises(InputError, match=f"{name} must be"):
            train_simclr(pictures, tmp_path / "encoder", **{**TINY, name: value})


def test_training_starts_from_the_weights_given(tmp_path):
    tower = SimClrModel(5, "cpu", None, 0.1).tower
    full = {**tower.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    save_file(full, tmp_path / "w.safetensors")
    torch.save(full, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        values, digest = read_weights(tmp_path / name)
        assert len(digest) == 64
        started = SimClrModel(0, "cpu", values, 0.1).tower.state_dict()
        assert all(torch.equal(started[key], value) for key, value in tower.state_dict().items())


def test_missing_and_wrong_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(EncoderUnavailableError, match=r"resnet18-\w+\.pth .*leave the weights out"):
        read_weights("imagenet")
    with pytest.raises(EncoderUnavailableError, match="there are no weights in"):
        read_weights(tmp_path / "none.pth")
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    save_file({"x": torch.zeros(1)}, tmp_path / "bad.safetensors")
    for name in ("bad.pth", "bad.safetensors"):
        with pytest.raises(EncoderUnavailableError, match="holds no weights of a ResNet-18"):
            read_weights(tmp_path / name)


def test_views_depend_on_picture_epoch_and_view_only():
    image = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = [
        augment(image, 16, seeded_random(0, *facts)) for facts in ((1, "a", 0), (1, "a", 0), (2, "a", 0), (1, "a", 1))
    ]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[3])
    assert views[0].shape == (3, 16, 16)
    thin = torch.full((3, 1, 90), 255, dtype=torch.uint8)
    assert all(augment(thin, 16, seeded_random(i)).isfinite().all() for i in range(20))


def test_the_network_is_torchvisions_and_its_initial_weights_have_their_spread():
    from torchvision.models import resnet18

    theirs = {name: value for name, value in resnet18().state_dict().items() if not name.startswith("fc.")}
    ours = SimClrModel(0, "cpu", None, 0.1).tower.state_dict()
    for tower in (ours, empty_tower().state_dict()):
        assert {name: value.shape for name, value in tower.items()} == {name: theirs[name].shape for name in theirs}
    for name, value in theirs.items():
        if value.is_floating_point():
            spread = value.std(correction=0).item()
            assert ours[name].std(correction=0).item() == pytest.approx(spread, rel=0.05), name
