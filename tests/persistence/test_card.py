"""The model card: its metadata, its text and the recorded evaluation."""

import os
import re
from unittest import mock

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from scipy.stats import binomtest

from clipadapter import FewShotClassifier
from clipadapter.bench import evaluate_model
from clipadapter.data import load_dataset
from clipadapter.errors import ArtifactError, InputError
from clipadapter.metrics import metrics_shown
from clipadapter.persistence import load_model, read_config, record_evaluation
from clipadapter.persistence.card import code, escape, hub_repositories, render_card

from ..classifier.squares import COLOURS, squares

NASTY = ["a|b", "<script>alert(1)</script>", "[x](javascript:y)", "# head", "a: b\n---\n- c", "`rm`"]
NASTY += ["'\"\\", "\x07\u202ebell"]


@pytest.fixture
def folder(fitted, tmp_path):
    return fitted.save(tmp_path / "model")


@pytest.fixture(scope="module")
def config(fitted, tmp_path_factory):
    """The config of a model without an evaluation."""
    return read_config(fitted.save(tmp_path_factory.mktemp("plain") / "model"))


@pytest.fixture(scope="module")
def recorded(fitted, metrics, tmp_path_factory):
    """The same with one."""
    place = fitted.save(tmp_path_factory.mktemp("recorded") / "model")
    record_evaluation(place, metrics)
    return read_config(place)


def render(config, encoder=None, evaluation=None, **changes):
    """The card of a config with other facts of its encoder, its evaluation, or others."""
    provenance = changes.pop("provenance", config.provenance)
    if evaluation is not None:
        provenance = {**provenance, "evaluation": {**config.provenance["evaluation"], **evaluation}}
    facts = config.encoder.model_copy(update=encoder or {})
    return render_card(config.model_copy(update={"encoder": facts, "provenance": provenance, **changes}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four test pictures: three as they should be, and a blue one among the red."""
    root = tmp_path_factory.mktemp("data") / 'fruit: "fresh"'
    for i, (name, colour) in enumerate([("red", "red"), ("green", "green"), ("blue", "blue"), ("red", "blue")]):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + i, 20), COLOURS[colour]).save(root / name / f"{i}.png")
    return load_dataset(root)


@pytest.fixture(scope="module")
def metrics(fitted, data):
    return evaluate_model(fitted, data, curve=False).to_dict() | {"created": "2999-01-01T00:00:00Z"}


def read(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def card_columns(task):
    return " | ".join(metric.heading for metric in metrics_shown("card", task).values())


def test_a_card_without_an_evaluation_has_the_accuracy_on_held_out_shots_if_there_are_any(folder, fitted, tmp_path):
    text, accuracy = read(folder), fitted.uncertainty_.accuracy
    assert ModelCard(text).data.to_dict() == {
        "library_name": "clipadapter",
        "pipeline_tag": "image-classification",
        "tags": ["clip", "few-shot", "image-classification", "model_hub_mixin"],
    }
    assert f"About {100 * accuracy.accuracy:.0f} % of {accuracy.shots} held-out pictures right" in text
    assert "No evaluation is recorded." in text and "<details>" not in text and "`lite`" not in text
    assert "How often it is right on pictures other than its shots was not measured." in text
    one = FewShotClassifier(encoder="toy", cache=None).fit(*squares(each=1))
    assert "Not known. No evaluation is recorded." in read(one.save(tmp_path / "one"))


def test_recorded_figures_stand_beside_the_baselines(folder, fitted, metrics):
    written = record_evaluation(folder, metrics)
    assert written == [folder / "README.md", folder / "config.json"]
    text = read(folder)
    card = ModelCard(text).data
    values = {result.metric_name: result.metric_value for result in card.eval_results}
    assert values["accuracy"] == 0.75
    assert values["balanced accuracy"] == round(metrics["model"]["balanced_accuracy"], 4)
    assert values["accuracy of zero-shot (baseline)"] == metrics["baselines"]["zero-shot"]["accuracy"]
    assert {result.dataset_name for result in card.eval_results} == {'fruit: "fresh"'}
    assert {result.task_type for result in card.eval_results} == {"image-classification"}
    assert f'| 4 pictures of fruit: "fresh" | {card_columns("single-label")} |' in text
    assert "| this model (`linear-probe`) | 75.0 |" in text and "| zero-shot |" in text and "| linear-probe |" in text
    assert "Classes with the lowest F1: blue (F1 67 %, pictures: 1), red (F1 67 %, pictures: 2)." in text
    assert "It was tested on 4 pictures only: its figures are rough." in text
    low, high = binomtest(3, 4).proportion_ci(0.95, "wilson")
    assert f"between {100 * low:.1f} and {100 * high:.1f} %" in text
    queries, _ = squares(seed=1)
    # the same sums in the same order
    np.testing.assert_array_equal(FewShotClassifier.load(folder, cache=None).logits(queries), fitted.logits(queries))


def test_figures_stay_with_the_model_when_it_is_saved_again(folder, config, metrics, tmp_path):
    record_evaluation(folder, metrics)
    again = FewShotClassifier.load(folder, cache=None).save(tmp_path / "again")
    assert read_config(again).provenance["evaluation"] == read_config(folder).provenance["evaluation"]
    assert "| this model (`linear-probe`) | 75.0 |" in read(again)
    after = read_config(folder)
    assert after.provenance.pop("evaluation")["model"]["accuracy"] == 0.75
    after.provenance["created"] = config.provenance["created"]
    assert after == config


def test_figures_do_not_go_to_another_fit(folder, metrics, tmp_path):
    record_evaluation(folder, metrics)
    loaded = load_model(folder)
    other = FewShotClassifier("toy", "zero-shot", cache=None)
    other.encode_classes(loaded.text.labels)
    other.fit_features(loaded.support, loaded.text)
    assert "evaluation" not in read_config(other.save(tmp_path / "other")).provenance
    assert "No evaluation is recorded" in read(tmp_path / "other")


@pytest.mark.parametrize(
    "change",
    [{"files": {"head": "0" * 64}}, {"model": {"accuracy": 5}}, {"model": {"accuracy": -1}}, {"n": 10**400}],
    ids=["other files", "too high", "negative", "too many"],
)
def test_figures_of_other_files_and_those_that_cannot_be_are_not_shown(change, recorded):
    assert "No evaluation is recorded" not in render(recorded)
    assert "No evaluation is recorded" in render(recorded, evaluation=change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head": "zero-shot"}, "of another model, with the head 'zero-shot'"),
        ({"model": {"classes": [{"name": "cat", "count": 1, "precision": 1, "recall": 1, "f1": 1}]}}, "another model"),
        ({"created": "2001-01-01T00:00:00Z"}, "before this model was made"),
        ({"n_test": 0}, "no metrics.json"),
        ({"model": None}, "no metrics.json"),
        ({"data": 3}, "no metrics.json"),
    ],
)
def test_other_figures_are_refused_and_nothing_is_written(change, words, folder, metrics):
    before = tree(folder)
    with pytest.raises(InputError, match=words):
        record_evaluation(folder, {**metrics, **change})
    assert tree(folder) == before


def test_a_write_that_fails_records_nothing_and_a_card_that_a_person_has_written_stays(folder, metrics):
    (folder / "README.md").write_text("# Mine")
    before = tree(folder)
    full = OSError(28, "No space left on device")
    with mock.patch.object(os, "fsync", side_effect=full), pytest.raises(ArtifactError, match="No space left"):
        record_evaluation(folder, metrics)
    assert tree(folder) == before
    assert record_evaluation(folder, metrics) == [folder / "config.json"]
    assert read(folder) == "# Mine"


def test_a_multilabel_card_has_multilabel_metrics(tmp_path):
    images, labels = squares()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    rows = [f"{i}.png,{label}" for i, label in enumerate(labels)]
    (tmp_path / "table.csv").write_text("\n".join(["path,labels", *rows]))
    table = load_dataset(tmp_path / "table.csv")
    model = FewShotClassifier("toy", "linear-probe", cache=None).fit(table.paths, table.label_sets)
    folder = model.save(tmp_path / "model")
    record_evaluation(folder, evaluate_model(model, table).to_dict())
    metric_names = {result.metric_name for result in ModelCard(read(folder)).data.eval_results}
    assert {"mean average precision", "micro F1", "macro F1 of zero-shot (baseline)"} <= metric_names
    assert f"| 12 pictures of table | {card_columns('multilabel')} |" in read(folder)
    assert "accuracy is between" not in read(folder)


def test_names_with_marks_break_neither_the_yaml_nor_the_page(recorded):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    provenance = {**recorded.provenance, "shots": dict.fromkeys(NASTY, 2)}
    encoder, evaluation = {"name": "x`|<b>", "licence": "<b>MIT</b>"}, {"data": NASTY[4], "worst": []}
    text = render(recorded, encoder, evaluation, class_names=NASTY, provenance=provenance)
    assert {result.dataset_name for result in ModelCard(text).data.eval_results} == {NASTY[4]}
    page = markdown.render(text.split("---\n", 2)[2])
    assert len(re.findall("<h1>", page)) == 1 and len(re.findall("<h2>", page)) == 7
    assert "<script" not in page and "javascript:" not in re.sub(r">[^<]*<", "><", page) and "<b>" not in page
    cells = re.findall(r"<td>(.*?)</td>\n<td style=\"text-align:right\">2</td>", page)
    assert len(cells) == len(NASTY)
    assert cells[0] == "a|b" and cells[2] == "[x](javascript:y)" and cells[3] == "# head"


def test_the_encoder_is_named_where_it_is_on_the_hub(config):
    text = render(config, {"name": "open_clip:ViT-B-32/openai", "licence": "MIT"})
    facts = ModelCard(text).data.to_dict()
    assert facts["base_model"] == ["timm/vit_base_patch32_clip_224.openai"]
    assert facts["base_model_relation"] == "adapter"
    assert "license" not in facts and "have the licence MIT" in text
    for name, repositories in {
        "open_clip:ViT-B-32/laion2b_s34b_b79k[final,lite/final]": ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K"],
        "hf-hub:imageomics/bioclip@main": ["imageomics/bioclip"],
        "timm:vit_small_patch14_dinov2.lvd142m@224": ["timm/vit_small_patch14_dinov2.lvd142m"],
        "hf:google/siglip2-base-patch16-224@main": ["google/siglip2-base-patch16-224"],
        **dict.fromkeys(("open_clip:ViT-B-32/openai:/a/b.pt", "timm:resnet50.a1_in1k:/a/b.pth", "hf:/a/b"), []),
        **dict.fromkeys(("open_clip:local-dir:/a/b", "open_clip:ViT-B-32/none"), []),
    }.items():
        assert hub_repositories(name) == repositories, name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open_clip:local-dir:/a/b", ', encoder="open_clip:local-dir:PATH")'),
        ("timm:resnet50.a1_in1k:/a/b.pth", ', encoder="timm:resnet50.a1_in1k:PATH")'),
        ("timm:local-dir:/a/b[final,lite/final]", ', encoder="timm:local-dir:PATH")'),
        ("hf:/a/b", ', encoder="hf:PATH")'),
        ("lite", "Its encoder `lite` is small and made for trying out"),
        ("lite[final,inner-mean]", "pip install 'clipadapter[lite]'"),
        ("lite[final,efficientnet-lite2/final]", "pip install 'clipadapter[efficientnet]'"),
        ("hf:google/siglip2-base-patch16-224", "pip install 'clipadapter[transformers]'"),
        ("open_clip:ViT-B-32/openai", "pip install 'clipadapter[train]'"),
    ],
)
def test_the_card_says_what_the_encoder_needs(name, words, config):
    assert words in render(config, {"name": name})


def test_the_lines_of_the_card_run(folder, tmp_path, monkeypatch, capsys):
    lines = re.search(r"```python\n(.*?)```", read(folder), re.DOTALL)[1]
    assert len([line for line in lines.splitlines() if line]) <= 5
    Image.fromarray(squares(1)[0][0]).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(lines.replace("path/to/this/folder", str(folder)), {})
    assert capsys.readouterr().out.startswith("red 0.")


def test_a_config_from_elsewhere_may_hold_anything_and_its_texts_stay_on_their_line(config):
    odd = {"shots": ["x"], "versions": 3, "created": {"a": "|"}, "evaluation": [1], "python": None}
    assert "No evaluation is recorded" in render(config, provenance=odd)
    assert "<summary>All 31 classes</summary>" in render(config, class_names=[f"class {i}" for i in range(31)])
    assert escape("a\nb  c") == r"a\\nb  c"
    assert code("a`b|c\n") == r"`a'b/c\n`"


@pytest.mark.parametrize("letter", ["\x7f", "\x85", "\x9f", "\u2028", "\ufeff", "\ufffe", "\U0001f600", "\U000e0001"])
def test_every_letter_can_stand_in_the_yaml(letter, recorded):
    text = render(recorded, evaluation={"data": f"a{letter}b"})
    assert {result.dataset_name for result in ModelCard(text).data.eval_results} == {f"a{letter}b"}


def test_the_card_describes_the_head_and_its_fidelity(tmp_path):
    images, labels = squares()
    folder = FewShotClassifier(encoder="toy", head="afa", cache=None).fit(images, labels).save(tmp_path / "model")
    text = " ".join((folder / "README.md").read_text().split())
    assert "after AFA's abstract, the rest is ours" in text
    assert "([paper](https://arxiv.org/abs/2505.07690))" in text
    assert "Fidelity: Inspired by a paper, no implementation of it. Only the abstract of the paper is known" in text
