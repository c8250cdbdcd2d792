import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from clipadapter.bench.bundle import BUNDLE_FILE, Bundle, TestPart, load_bundle, save_bundle
from clipadapter.bench.fits import Draw
from clipadapter.bench.protocols.few_shot import FewShot
from clipadapter.errors import DataError, InputError
from clipadapter.features import FeatureSet
from clipadapter.heads import TextFeatures
from clipadapter.heads.linear_probe import LinearProbe
from clipadapter.heads.support import EvaluationFeatures
from clipadapter.heads.zero_shot import ZeroShot

NAMES = ("cat", "cow", "dog")


def features(n=4, names=NAMES, seed=0, data="pets", d=8):
    rng = np.random.default_rng(seed)
    X = np.repeat(2 * np.eye(3, d)[: len(names)], n, axis=0) + rng.standard_normal((n * len(names), d))
    provenance = {"encoder": "toy", "fingerprint": "f", "data": data, "templates": ("a {}.",)}
    return FeatureSet(X, tuple(np.repeat(names, n)), names, provenance)


def text(names=NAMES, d=8):
    return TextFeatures(names, np.eye(len(names), d) + 0.1, logit_scale=30.0)


@pytest.fixture
def full():
    return Bundle(
        features(),
        text(),
        {
            "test": TestPart(features(seed=1)),
            "drawn": TestPart(features(names=("cat", "dog"), seed=2, data="sketches"), "shift"),
            "birds": TestPart(features(names=("emu", "owl"), seed=3, data="birds"), "new", text(("emu", "owl"))),
        },
    )


def test_test_parts_are_marked_for_evaluation(full):
    assert all(isinstance(part.features.X, EvaluationFeatures) for part in full.tests.values())
    with pytest.raises(InputError, match="marked for evaluation"):
        ZeroShot().fit(full.tests["test"].features.X, full.tests["test"].features.y, text=full.text)


def test_a_bundle_comes_back_as_it_was(full, tmp_path):
    folder = save_bundle(full, tmp_path / "b")
    again = load_bundle(folder)
    np.testing.assert_array_equal(again.support.X, full.support.X)
    assert again.support.y == full.support.y
    assert again.names == full.names
    for name in full.names:
        np.testing.assert_array_equal(again.tests[name].features.X, full.tests[name].features.X)
        assert again.tests[name].features.y == full.tests[name].features.y
        assert again.data(name, [0]) == full.data(name, [0])
        assert again.text_digest(name) == full.text_digest(name)
    runs = [FewShot().plan(bundle, "x", ZeroShot(), Draw(1, 1, [0, 4, 8])) for bundle in (full, again)]
    assert [run.key for run in runs[0]] == [run.key for run in runs[1]]
    before = (folder / BUNDLE_FILE).stat().st_mtime_ns
    save_bundle(full, folder)  # a second writer does not change it
    assert (folder / BUNDLE_FILE).stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.rglob("*")] == ["b", BUNDLE_FILE]


def damage(folder, arrays=None, header=None, **changes):
    """Write the file with other arrays, another header, or other facts in that."""
    with safe_open(folder / BUNDLE_FILE, framework="numpy") as file:
        facts, own = json.loads(file.metadata()["facts"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file({**own, **(arrays or {})}, folder / BUNDLE_FILE, {"facts": header or json.dumps({**facts, **changes})})


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (lambda f: (f / BUNDLE_FILE).unlink(), "can't read"),
        (lambda f: damage(f, header="{"), "no complete set of features"),
        (lambda f: damage(f, format=7), "format"),
        (lambda f: damage(f, surprise=1), "surprise"),
        (lambda f: (f / BUNDLE_FILE).write_bytes(b"x" * 50), "no complete set of features"),
        (lambda f: save_file({"support": np.ones((2, 2))}, f / BUNDLE_FILE), "valid dictionary"),
        (lambda f: damage(f, tests={"no": {"class_names": ["a"], "blocks": [["final", 8]]}}), "no array 'test.no.la"),
        (lambda f: damage(f, {"support.labels": np.array([0, 9])}), "must be 0 to 2"),
    ],
)
def test_a_damaged_folder_is_refused(full, tmp_path, harm, error):
    folder = save_bundle(full, tmp_path / "b")
    harm(folder)
    with pytest.raises(DataError, match=error):
        load_bundle(folder)


def test_a_shifted_part_is_answered_among_its_own_classes(full):
    # Of three classes the probe knows, the drawings show two: cow is not to be said.
    runs = FewShot().plan(full, "probe", LinearProbe(), Draw(4, 1, list(range(12))))
    shifted = next(run for run in FewShot().measure(full, LinearProbe(), runs) if run.data.protocol == "shift")
    part = full.tests["drawn"].features
    logits = LinearProbe().fit(full.support.X, full.support.y, text=full.text).logits(part.X)
    two = np.array(["cat", "dog"])[logits[:, [0, 2]].argmax(axis=1)]
    assert shifted.metrics.accuracy == pytest.approx((two == np.array(part.y)).mean())
    assert shifted.n_classes == 2


def test_new_classes_are_known_by_their_text_except_to_a_head_bound_to_its_classes(full):
    def measure(head):
        return FewShot().measure(full, head, FewShot().plan(full, "x", head, Draw(1, 1, [0, 4, 8])))

    new = next(run for run in measure(ZeroShot()) if run.data.protocol == "new")
    part = full.tests["birds"].features
    unit = np.asarray(part.X) / np.linalg.norm(part.X, axis=1, keepdims=True)
    right = (unit @ full.tests["birds"].text.embeddings.T).argmax(axis=1) == np.repeat([0, 1], 4)
    assert new.metrics.accuracy == pytest.approx(right.mean())
    assert (new.n_classes, new.data.test) == (2, "birds")
    bound = measure(LinearProbe())
    assert [run.error is None for run in bound] == [True, True, False]
    assert "knows only the classes" in bound[2].error


def test_labels_and_widths_that_do_not_match_are_refused_and_class_text_is_not_rounded_twice():
    with pytest.raises(InputError, match="no class text: cow"):
        Bundle(features(), text(("cat", "dog")))
    with pytest.raises(InputError, match="width 8 but class text has width 5"):
        Bundle(features(), text(d=5))
    with pytest.raises(InputError, match="must have its own class text"):
        TestPart(features(), "new")
    rows = np.random.default_rng(0).standard_normal((50, 64))
    once = TextFeatures([str(i) for i in range(50)], rows)
    np.testing.assert_array_equal(TextFeatures(once.labels, once.embeddings).embeddings, once.embeddings)


def with_prompts(names=NAMES):
    rng = np.random.default_rng(5)
    plain = text(names)
    return plain.with_prompts([rng.standard_normal((i + 1, plain.embeddings.shape[1])) for i in range(len(names))])


def test_single_prompts_come_back_are_absent_where_they_were_and_are_damage_if_they_do_not_fit(tmp_path):
    new = with_prompts(("emu", "owl"))
    bundle = Bundle(features(), with_prompts(), {"birds": TestPart(features(names=("emu", "owl")), "new", new)})
    again = load_bundle(save_bundle(bundle, tmp_path / "b"))
    for before, after in ((bundle.text, again.text), (new, again.tests["birds"].text)):
        for rows, others in zip(before.prompts, after.prompts, strict=True):
            np.testing.assert_array_equal(rows, others)
    assert again.text_digest("birds") == bundle.text_digest("birds")
    assert load_bundle(save_bundle(Bundle(features(), text()), tmp_path / "plain")).text.prompts is None
    damage(tmp_path / "b", text={"labels": NAMES, "logit_scale": 30.0, "prompts": [1, 2, 9]})
    with pytest.raises(DataError, match="'support.prompts' has 6 rows, not the 12"):
        load_bundle(tmp_path / "b")


def test_keys_depend_on_single_prompts_only_for_heads_that_read_them():
    plain, stored = Bundle(features(), text()), Bundle(features(), with_prompts())
    assert plain.text_digest("rest", False) == stored.text_digest("rest", False)
    assert plain.text_digest("rest") != stored.text_digest("rest")
    keys = [FewShot().plan(one, "x", ZeroShot(), Draw(1, 1, [0, 4, 8]))[0].key for one in (plain, stored)]
    assert keys[0] == keys[1]
