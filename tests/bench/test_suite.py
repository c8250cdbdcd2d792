import pytest

from clipadapter.bench import default_heads
from clipadapter.bench.suite import Suite, Variant, load_suite, make_head
from clipadapter.bench.suite_files import list_suites
from clipadapter.encoders import check_uri
from clipadapter.errors import DataError, InputError, UnknownNameError
from clipadapter.heads.clip_adapter import ClipAdapter

from ..suite_text import parse_suite

KNN = 'title = "t"\nheads = ["knn"]\n'
FOLDS = 'title = "t"\nprotocol = "cross-validation"\nheads = ["knn"]\n'


@pytest.mark.parametrize("name", list_suites())
def test_every_shipped_suite_makes_its_heads_and_names_encoders(name):
    suite = load_suite(name)
    assert suite.name == name
    assert suite.title
    assert suite.question.endswith("?")
    assert suite.source
    for variant in suite.all_variants():
        make_head(variant)
    for uri in suite.encoders:
        check_uri(uri)


def test_the_package_has_the_studies_of_the_paper():
    asked = {"few-shot", "bottleneck", "residual-ratio", "branch", "learned-ratio", "prompts", "backbones", "shift"}
    assert asked | {"efficiency", "features", "paper", "base-to-new", "cross-dataset"} <= set(list_suites())
    assert [v.value for v in load_suite("bottleneck").all_variants()[1:]] == [1, 2, 4, 8, 16, 32]
    assert [v.value for v in load_suite("residual-ratio").all_variants()] == [None, 0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
    paper = load_suite("paper")
    assert (len(paper.data), paper.encoders, len(paper.seeds)) == (11, ["open_clip:RN50/openai"], 3)
    assert (paper.shots, [prompts.templates for prompts in paper.prompts]) == ([1, 2, 4, 8, 16], ["own"])
    titles = {variant.title for variant in paper.all_variants()}
    assert {"zero-shot", "clip-adapter", "clip-adapter (official)", "clip-adapter (paper)"} <= titles


def test_all_means_every_head_that_takes_part():
    suite = parse_suite("own", 'title = "t"\nheads = ["all"]')
    assert {variant.head for variant in suite.all_variants()} == set(default_heads())


def test_presets_and_official_recipes_are_made():
    preset, plain = (make_head(Variant(head="tip-adapter", **more)) for more in ({"preset": "dtd"}, {}))
    assert preset.get_params() != plain.get_params()
    official = make_head(Variant(head="clip-adapter", recipe="official", params={"alpha": 0.7}))
    assert official.get_params() == ClipAdapter.official(alpha=0.7).get_params()
    own = make_head(Variant(head="clip-adapter", preset="own").for_data("food101"))
    assert own.get_params() == ClipAdapter().get_params()


@pytest.mark.parametrize(
    ("data", "alpha"), [("dtd", 0.6), ("eurosat", 0.6), ("imagenet", 0.2), ("food101", 0.2), ("", 0.2)]
)
def test_the_own_preset_is_that_of_the_data_set_and_else_the_recipe(data, alpha):
    given = Variant(head="clip-adapter", recipe="paper", preset="own", params={"epochs": 9})
    variant = given.for_data(data)
    assert variant.title == given.title
    assert make_head(variant).get_params() == ClipAdapter.paper(epochs=9, alpha=alpha).get_params()


@pytest.mark.parametrize(
    ("variant", "error"),
    [
        (Variant(head="zero-shot", recipe="official"), "no recipe of ZeroShot is called 'official'"),
        (Variant(head="clip-adapter", params={"alpa": 1}), "alpa"),
        (Variant(head="tip-adapter", preset="ddt"), "Did you mean 'dtd'"),
        (Variant(head="taskres", preset="imagenet", recipe="official"), "not both. The authors' recipe, which is `Ta"),
    ],
)
def test_a_head_that_cannot_be_created_is_refused(variant, error):
    with pytest.raises(InputError, match=error):
        make_head(variant)


def test_a_suite_is_read_by_its_path_or_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('title = "t"\nheads = ["knn"]\nshots = [2]\nseeds = [5]\n')
    assert load_suite(path) == Suite(name="mine", title="t", heads=["knn"], shots=[2], seeds=[5])
    with pytest.raises(UnknownNameError, match="Did you mean 'bottleneck'"):
        load_suite("botleneck")
    with pytest.raises(DataError, match="can't be opened"):
        load_suite("nowhere/own.toml")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("title = ", "suite 'own' is not TOML"),
        ('title = "t"', "'heads' is missing; docs/studies.md"),
        ('title = "t"\nheads = ["knn"]\nshot = [1]', "no field of a suite is called 'shot'. Did you mean 'shots'"),
        ('title = "t"\nheads = ["knn"]\nshots = [0]', "shots must be 1 or more"),
        ('title = "t"\nheads = ["knn"]\nprotocol = "all"', "protocol"),
        ('title = "t"\nheads = ["knn", 5]', r"'heads', entry 2 is 5: .*; see docs/studies.md"),
        ('title = "t"\nheads = "knn"', r"'heads' is 'knn': .* list; see docs/studies.md"),
        ('title = "t"\nheads = [{ head = "knn", parms = {} }]', "a table of 'heads' is called 'parms'. Did"),
        ('title = "t"\nheads = ["knn", { gda = {} }]', "'heads', entry 2, 'head' is missing; docs/studies.md"),
        ('title = "t"\nheads = [{ head = "gda", vary = { a = [1], b = [1] } }]', "'heads', entry 1, 'vary' is"),
        ('title = "t"\nheads = ["knn"]\nviews = 0', "'views' is 0"),
        ('title = "t"\nheads = ["knn"]\n[stream]\ntask_known = true', 'are only for protocol = "stream"'),
        ('title = "t"\nheads = [{ head = "knn", mode = "joint" }]', 'are only for protocol = "stream"'),
        ('title = "t"\nheads = ["knn"]\nshots = ["all"]', 'shots = "all" does not suit protocol = "few-shot"'),
        ('title = "t"\nprotocol = "stream"\nheads = ["knn"]\n[stream]\norders = []', "'stream', 'orders'"),
        (f"{FOLDS}options = {{ fold = 3 }}", "are folds, not fold"),
        ('title = "t"\nheads = ["knn"]\nviews = 1001', "'views' is 1001"),
        ('title = "t"\nheads = ["knn"]\nviews = "epoch"', "'views' is 'epoch': .*see docs/studies.md"),
        (f'{KNN}protocol = "stream"\nviews = "per-epoch"', "does not work for a stream of tasks: give a number of"),
        ('title = "t"\nheads = ["knn"]\nstream = { orders = [{ nam = "x" }] }', "'orders', entry 1, 'name' is missing"),
        (f'{KNN}name = "../../package"', "'name' is '../../package': .* another, such as '__.._pack"),
        ('title = "t"\nheads = ["knn"]\nname = "/tmp/x"', "'name' is '/tmp/x': '/tmp/x' can't be the name of a file"),
    ],
)
def test_a_damaged_suite_is_refused(text, error):
    with pytest.raises(DataError, match=error):
        parse_suite("own", text)


def test_a_head_with_parameters_may_stand_among_the_names_of_heads_and_what_differs_is_in_the_title():
    suite = parse_suite("own", 'title = "t"\nheads = ["knn", { head = "clip-adapter", params = { alpha = 0.2 } }]')
    assert [variant.title for variant in suite.all_variants()] == ["knn", "clip-adapter (alpha=0.2)"]
    assert Suite.model_validate(suite.model_dump()) == suite
    params = {"alpha": 0.5, "reduction": 8}
    assert Variant(head="clip-adapter", params=params).title == "clip-adapter (alpha=0.5, reduction=8)"
    assert Variant(head="clip-adapter", recipe="official").title == "clip-adapter (official)"
    assert Variant(head="knn", label="neighbours", params={"k": 3}).title == "neighbours"


@pytest.mark.parametrize(
    ("heads", "error"),
    [
        ('["clip-lora"]', "clip-lora tunes the encoder on each draw"),
        ('["tip"]', "no head is called 'tip'"),
        ('[{ head = "knn", label = "x" }, { head = "prototype", label = "x" }]', "more than one head called x"),
    ],
)
def test_heads_that_a_suite_cannot_have_are_refused(heads, error):
    with pytest.raises((InputError, DataError, UnknownNameError), match=error):
        parse_suite("own", f'title = "t"\nheads = {heads}').all_variants()


def test_a_suite_and_a_varied_parameter_take_a_recipe():
    text = """
title = "t"
heads = ["zero-shot", "clip-adapter", { head = "clip-adapter", vary = { alpha = [0.2, 0.6] }, recipe = "paper" }]
"""
    variants = parse_suite("own", text).all_variants()
    assert [v.title for v in variants] == ["zero-shot", "clip-adapter", "paper alpha=0.2", "paper alpha=0.6"]
    assert make_head(variants[3]).get_params() == ClipAdapter.paper(alpha=0.6).get_params()
    whole = parse_suite("own", text.replace(', recipe = "paper"', "") + 'recipe = "official"').all_variants()
    # A head without the recipe keeps its defaults.
    assert [v.recipe for v in whole] == [None, "official", "official", "official"]
    assert make_head(whole[2]).get_params() == ClipAdapter.official(alpha=0.2).get_params()
