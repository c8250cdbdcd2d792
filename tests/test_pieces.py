"""How many pictures a tower works on at a time."""

import numpy as np
import pytest
import torch
from torch import nn

from clipadapter.pieces import A_THREAD, CONVOLUTIONS, cores, in_pieces, is_convolutional, rows_in_pieces


class Watched(nn.Module):
    """Layers that remember how many pictures came at a time."""

    def __init__(self, convolutions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(convolutions)))
        self.seen: list[int] = []

    def forward(self, pixels):
        self.seen.append(len(pixels))
        return self.layers(pixels).mean(dim=(2, 3))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.fixture
def pixels():
    return torch.rand(11, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_convolutional_tower_takes_a_few_for_each_thread(threads, pixels):
    tower = Watched(CONVOLUTIONS + 1).eval()
    with torch.inference_mode():
        found = in_pieces(tower, tower, pixels)
        assert tower.seen == [A_THREAD * threads] * 2 + [3]
        torch.testing.assert_close(found, tower(pixels))


def test_another_tower_takes_all(threads, pixels):
    tower = Watched(CONVOLUTIONS).eval()
    with torch.inference_mode():
        in_pieces(tower, tower, pixels)
    assert tower.seen == [11]


def test_patches_and_no_layers_are_not_convolutional():
    assert not is_convolutional(nn.Identity())
    assert not is_convolutional(nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8)))


def test_rows_come_in_order_at_most_so_many():
    seen = []

    def run(rows):
        seen.append(len(rows))
        return rows * 2

    np.testing.assert_array_equal(rows_in_pieces(run, np.arange(7), 3), np.arange(7) * 2)
    assert seen == [3, 3, 1]


def test_cores_are_counted():
    assert cores() >= 1
