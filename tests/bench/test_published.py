import pytest

from clipadapter.bench.published import ELEVEN_DATA_SETS, find_published, read_rows
from clipadapter.encoders.catalogue import read_models
from clipadapter.heads import list_heads

SHIFTED_DATA_SETS = {"imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"}
MEAN_NAMES = {"mean11", "mean11_base", "mean11_new", "mean11_harmonic"}
OTHER_METHODS = {
    *("coop", "cocoop", "kgcoop", "maple", "prograd", "tcp"),
    *("adalora", "clip-lora", "clip-svd", "prolip", "two-stage"),
    *("calip", "ivlp", "prompt-src", "rehark", "stata", "tda", "textcoord", "tip-x"),
}
"""Methods that need more than features, or are no head here."""


def find(**facts):
    return [one for one in find_published() if all(getattr(one, name) == fact for name, fact in facts.items())]


def only(method, dataset, backbone, shots, source, variant=""):
    facts = {"method": method, "dataset": dataset, "backbone": backbone, "shots": shots}
    (figure_found,) = find(**facts, source=source, variant=variant)
    return figure_found


@pytest.mark.parametrize(
    ("key", "accuracy"),
    [
        (("clip-adapter", "eurosat", "RN50", 16, "S1"), 84.43),
        (("clip-adapter", "fgvc_aircraft", "RN50", 1, "S1"), 17.49),
        (("tip-adapter", "imagenet", "RN50", 16, "S2"), 62.03),
        (("linear-probe", "imagenet", "RN50", 1, "S2"), 22.17),
        (("clip-adapter", "imagenet", "ViT-B/16", 16, "S2"), 71.13),
        (("coop", "imagenet_sketch", "RN50", 16, "S2"), 31.04),
        (("ape-t", "oxford_flowers", "RN50", 4, "S4"), 92.08),
        (("gda", "mean11", "RN50", 8, "S5"), 73.31),
        (("gda", "imagenet_r", "ViT-B/16", 16, "S5", "run of the shifted test parts"), 76.97),
        (("prolip", "mean11", "RN50", 16, "S6", "lambda = 0"), 61.59),
        (("two-stage", "mean11_new", "ViT-B/16", 16, "S7"), 75.48),
        (("clap", "mean11", "RN50", 4, "S8"), 69.13),
        (("lp++", "eurosat", "ViT-B/16", 4, "S9"), 71.21),
        (("rehark", "mean11", "RN50", 1, "S10"), 65.83),
        (("timo", "mean11", "RN50", 16, "S15", "TIMO-S"), 76.83),
        (("stata", "mean11", "ViT-B/16", 0, "S16", "batches of 64, very few classes"), 70.4),
        (("prompt-src", "mean11_new", "ViT-B/16", 16, "S17"), 76.10),
        (("tda", "eurosat", "RN50", 0, "S18"), 42.11),
        (("zero-shot", "eurosat", "open_clip:ViT-B-16/openai", 0, "S19"), 55.94),
        (("zero-shot", "dtd", "open_clip:ViT-L-14/laion2b_s32b_b82k", 0, "S19"), 62.93),
        (("zero-shot", "fgvc_aircraft", "open_clip:ViT-H-14-378/dfn5b", 0, "S19"), 72.19),
    ],
)
def test_figures_copied_by_hand(key, accuracy):
    assert only(*key).accuracy == accuracy


def test_names_are_known_no_figure_is_listed_twice_and_only_methods_without_shots_have_none():
    figures = find_published()
    assert len({(f.source, f.method, f.variant, f.dataset, f.backbone, f.shots) for f in figures}) == len(figures)
    assert {f.dataset for f in figures} == {*ELEVEN_DATA_SETS, *SHIFTED_DATA_SETS, *MEAN_NAMES}
    backbones = {f.backbone for f in figures if not f.backbone.startswith("open_clip:")}
    assert backbones == {"RN50", "RN101", "ViT-B/32", "ViT-B/16", "SigLIP2 ViT-B/16"}
    assert {f.method for f in figures} - set(list_heads()) <= OTHER_METHODS
    assert {f.source for f in figures} == {row["tag"] for row in read_rows("sources.csv")}
    assert {f.shots for f in figures} == {0, 1, 2, 4, 8, 16}
    percentages = [f.accuracy for f in figures]
    percentages += [float(one[name]) for one in read_rows("streams.csv") for name in ("transfer", "average", "last")]
    assert all(0 < percentage < 100 for percentage in percentages)
    assert {f.method for f in find(shots=0)} == {"zero-shot", "calip", "stata", "tda", "transclip"}
    assert {f.shots for f in find(method="zero-shot")} == {0}


def test_every_encoder_is_a_model_of_the_catalogue():
    uris = {f.backbone for f in find(method="zero-shot") if f.backbone.startswith("open_clip:")}
    assert len(uris) > 60
    models = {f"open_clip:{model}/{tag}" for model, facts in read_models().items() for tag in facts.tags}
    assert uris <= models


@pytest.mark.parametrize(
    ("method", "source"),
    [("clip-adapter", "S1"), ("tip-adapter", "S1"), ("tip-adapter-f", "S1"), ("zero-shot", "S1")]
    + [("coop", "S4"), ("ape", "S4"), ("ape-t", "S4")],
)
def test_the_mean_over_eleven_sets_is_that_of_its_rows(method, source):
    for n in (0,) if method == "zero-shot" else (1, 2, 4, 8, 16):
        rows = [only(method, dataset, "RN50", n, source).accuracy for dataset in ELEVEN_DATA_SETS]
        assert only(method, "mean11", "RN50", n, source).accuracy == pytest.approx(sum(rows) / 11, abs=0.02)


def test_the_mean_of_base_and_new_is_harmonic():
    """2 b n / (b + n) of the two means, or the mean over sets of theirs, which can't be above it: it is concave."""
    for base in find(dataset="mean11_base"):
        key = (base.backbone, base.shots, base.source, base.variant)
        new, both = (only(base.method, f"mean11_{part}", *key).accuracy for part in ("new", "harmonic"))
        upper_bound = 2 * base.accuracy * new / (base.accuracy + new)
        assert upper_bound - 0.3 < both < upper_bound + 0.02, base


def test_doubtful_figures_are_marked_and_a_range_is_a_middle_and_a_margin():
    fixed = ("S6", "fixed ratio and learning rate")
    assert not only("clip-adapter", "mean11", "RN50", 16, *fixed).verified
    assert {f.verified for f in find(method="rehark")} == {False}
    assert {f.verified for f in find(method="cocoop", dataset="mean11")} == {False}  # its backbone is inferred
    assert only("clip-adapter", "dtd", "RN50", 2, "S1").verified
    secondary = [row["tag"] for row in read_rows("sources.csv") if row["secondary"] == "yes"]
    assert sorted(secondary) == ["S14", "S16", "S2", "S8"]
    assert {f.verified for f in find(method="stata")} == {False}  # the authors' README has them as pictures
    figure = only("clip-adapter", "mean11", "RN50", 1, *fixed)
    assert (figure.accuracy - figure.margin, figure.accuracy + figure.margin) == (50, 58)
    assert only("gda", "mean11", "RN50", 1, "S5").margin == 0
