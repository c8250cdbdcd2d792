import pytest

from clipadapter.bench import default_heads
from clipadapter.bench.plan import make_head, value_of
from clipadapter.bench.suite import Suite, Variant, list_suites, load_suite, parse_suite
from clipadapter.errors import DataError, InputError, UnknownNameError
from clipadapter.heads.clip_adapter import ClipAdapter


@pytest.mark.parametrize("name", list_suites())
def test_every_shipped_suite_makes_its_heads(name):
    suite = load_suite(name)
    assert suite.name == name
    assert suite.title
    assert suite.question.endswith("?")
    assert suite.source
    for variant in suite.all_variants():
        make_head(variant)


def test_the_studies_of_the_paper_are_there():
    asked = {"few-shot", "bottleneck", "residual-ratio", "branch", "learned-ratio", "prompts", "backbones", "shift"}
    assert asked | {"efficiency", "features", "paper", "base-to-new", "cross-dataset"} <= set(list_suites())
    assert [v.params["reduction"] for v in load_suite("bottleneck").all_variants()[1:]] == [1, 2, 4, 8, 16, 32]
    assert len(load_suite("paper").data) == 11


def test_all_means_every_head_that_takes_part():
    suite = parse_suite("own", 'title = "t"\nheads = ["all"]')
    assert {variant.head for variant in suite.all_variants()} == set(default_heads())


def test_a_head_that_tunes_the_encoder_is_refused():
    with pytest.raises(InputError, match="clip-lora tunes the encoder on each draw"):
        parse_suite("own", 'title = "t"\nheads = ["clip-lora"]').all_variants()


def test_what_differs_is_in_the_title():
    params = {"alpha": 0.5, "reduction": 8}
    assert Variant(head="clip-adapter", params=params).title == "clip-adapter (alpha=0.5, reduction=8)"
    assert Variant(head="clip-adapter", official=True).title == "clip-adapter (official)"
    assert Variant(head="knn", label="neighbours", params={"k": 3}).title == "neighbours"


def test_presets_and_official_recipes_are_made():
    assert (
        make_head(Variant(head="tip-adapter", preset="dtd")).get_params()
        != make_head(Variant(head="tip-adapter")).get_params()
    )
    official = make_head(Variant(head="clip-adapter", official=True, params={"alpha": 0.7}))
    assert official.get_params() == ClipAdapter.official(alpha=0.7).get_params()


@pytest.mark.parametrize(
    ("variant", "error"),
    [
        (Variant(head="zero-shot", official=True), "zero-shot has no recipe of its authors"),
        (Variant(head="clip-adapter", params={"alpa": 1}), "alpa"),
        (Variant(head="tip-adapter", preset="ddt"), "Did you mean 'dtd'"),
        (Variant(head="taskres", preset="imagenet", official=True), "not both. The authors' recipe, which is `TaskRes"),
    ],
)
def test_a_head_that_cannot_be_made_is_told(variant, error):
    with pytest.raises(InputError, match=error):
        make_head(variant)


def test_the_value_that_varies():
    suite = load_suite("residual-ratio")
    values = [value_of(suite, variant) for variant in suite.all_variants()]
    assert values == [None, 0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_a_suite_of_ones_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('title = "t"\nheads = ["knn"]\nshots = [2]\nseeds = [5]\n')
    assert load_suite(path) == Suite(name="mine", title="t", heads=["knn"], shots=[2], seeds=[5])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("title = ", "suite 'own' is not TOML"),
        ('title = "t"', "names no head"),
        ('title = "t"\nheads = ["knn"]\nshot = [1]', "shot Extra inputs"),
        ('title = "t"\nheads = ["knn"]\nshots = [0]', "shots must be 1 or more"),
        ('title = "t"\nheads = ["knn"]\nprotocol = "all"', "protocol"),
    ],
)
def test_a_damaged_suite_is_told(text, error):
    with pytest.raises(DataError, match=error):
        parse_suite("own", text)


def test_names_that_nothing_has():
    with pytest.raises(UnknownNameError, match="Did you mean 'bottleneck'"):
        load_suite("botleneck")
    with pytest.raises(UnknownNameError, match="no head is called 'tip'"):
        parse_suite("own", 'title = "t"\nheads = ["tip"]').all_variants()
    with pytest.raises(DataError, match="can't read"):
        load_suite("nowhere/own.toml")


def test_titles_must_differ():
    twice = '[{ head = "knn", label = "x" }, { head = "prototype", label = "x" }]'
    with pytest.raises(DataError, match="more than one head called x"):
        parse_suite("own", f'title = "t"\nvariants = {twice}').all_variants()
