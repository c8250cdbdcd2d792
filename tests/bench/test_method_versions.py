"""A head whose fits give other logits has another version, so that older records of it are not taken for new ones.

``python tests/bench/test_method_versions.py`` writes golden_logits.json again, after versions were raised.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from clipadapter.bench.methods import code_digest, method_version
from clipadapter.heads import Head, create_head, head_info, list_heads
from clipadapter.testing import toy_features

GOLDEN = Path(__file__).with_name("golden_logits.json")
RELATIVE_TOLERANCE = 0.01
"""Training gives logits that differ by up to 0.1 % between processors. This test does not detect a smaller change of a
method. Raise the version for such a change too."""
HEADS = [name for name in list_heads() if not head_info(name).cls.needs_tower and not head_info(name).cls.tunes_encoder]


def fitted_logits(name):
    """Logits of a head with its defaults, fitted to toy features."""
    X, y, text = toy_features(counts=(5, 4, 3), d=16, noise=0.9)
    queries = toy_features(counts=(2, 2, 2), d=16, noise=0.9, seed=9)[0]
    head = create_head(name)
    options = {"unlabelled": queries} if head.transductive else {}
    return np.asarray(head.fit(X, y, text=text, **options).logits(queries), np.float64)


def entry(name):
    return {
        "version": method_version(head_info(name).cls),
        "logits": [[float(f"{value:.5g}") for value in row] for row in fitted_logits(name)],
    }


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_gives_other_logits_has_another_version(name):
    golden = json.loads(GOLDEN.read_text())
    if name not in golden:
        pytest.fail(f"{name} is new: python {Path(__file__).name} adds its logits to {GOLDEN.name}")
    version = method_version(head_info(name).cls)
    assert version == golden[name]["version"], f"{name} has a new version: run python {Path(__file__).name}"
    expected = np.array(golden[name]["logits"])
    difference = np.abs(fitted_logits(name) - expected).max() / np.abs(expected).max()
    assert difference < RELATIVE_TOLERANCE, (
        f"{name} gives other logits than before, by {difference:.1%}: raise its version, "
        f'@register_head("{name}", version={int(version) + 1}), and run python {Path(__file__).name}'
    )


class OwnHead(Head):
    """A head of another package."""


def test_the_version_of_a_head_of_another_package_has_a_hash_of_its_module():
    assert method_version(OwnHead) == f"1+{code_digest(Path(__file__).read_text(encoding='utf-8'))}"


SOURCE = """
def scaled(x, by=2.0):
    return [by * one for one in x]
"""
COMMENTED = '''
"""What this module does."""
# A comment.
count: int
def scaled(x: list[float], by: float = 2.0) -> list[float]:
    """The numbers, multiplied."""
    return [by * one for one in x]
'''


def test_the_hash_of_code_ignores_comments_docstrings_and_annotations():
    assert code_digest(COMMENTED) == code_digest(SOURCE)
    assert code_digest(SOURCE.replace("2.0", "3.0")) != code_digest(SOURCE)


if __name__ == "__main__":
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry(name))}" for name in HEADS)
    GOLDEN.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
