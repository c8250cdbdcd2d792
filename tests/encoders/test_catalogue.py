"""The catalogue says what open_clip says, and is read without importing torch."""

import importlib.util
import json

import open_clip
import pytest

from clipadapter.encoders import catalogue, check_uri, list_encoders, list_listings
from clipadapter.encoders.registry import ENCODERS
from clipadapter.encoders.toy import ToyEncoder
from clipadapter.errors import EncoderUnavailableError, InputError, UnknownNameError

from ..imports import recorded
from ..pages import ROOT


def script(name):
    """The module of a script."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_open_clip_models, make_timm_models = script("make_open_clip_models"), script("make_timm_models")
PUBLISHED_MILLIONS = {
    "ViT-B-32": 151.28,
    "RN50": 102.01,
    "ViT-B-16-SigLIP": 203.16,
    "convnext_base_w": 179.39,
    "EVA02-L-14-336": 428.08,
    "ViT-H-14": 986.11,
    "coca_ViT-L-14": 638.45,
    "ViT-bigG-14-CLIPA": 2517.22,
}
"""Parameters, from docs/model_profile.csv of open_clip."""

of_this_release = pytest.mark.skipif(
    not catalogue.names_are_current(), reason="open_clip is of another release: run scripts/make_open_clip_models.py"
)


@of_this_release
def test_models_are_those_of_open_clip(monkeypatch):
    monkeypatch.setattr(make_open_clip_models, "count_parameters", lambda name: None)
    packaged = json.loads(catalogue.MODELS_FILE.read_text())["models"]
    assert [{**facts, "parameters": None} for facts in packaged.values()] == list(
        make_open_clip_models.describe_models().values()
    )
    plain = {name: name.removesuffix("-quickgelu") for name in open_clip.list_models()}
    assert list(packaged) == [name for name in plain if plain[name] == name or plain[name] not in plain]


@of_this_release
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["RN50", "convnext_base_w", "EVA02-B-16", "ViT-B-16-SigLIP2", "MobileCLIP2-S0", "PE-Core-T-16-384", "ViTamin-S"],
)
def test_parameters_are_those_of_open_clip(name):
    assert make_open_clip_models.count_parameters(name) == catalogue.read_models()[name].parameters


def test_parameters_are_those_that_open_clip_publishes():
    models = catalogue.read_models()
    counts = {name: round(models[name].parameters / 1e6, 2) for name in PUBLISHED_MILLIONS}
    assert counts == PUBLISHED_MILLIONS
    assert make_open_clip_models.count_parameters("ViT-B-32") == models["ViT-B-32"].parameters


@of_this_release
def test_every_pretrained_model_is_listed_once_by_its_short_name():
    names = [one.name for one in catalogue.list_known()]
    assert len(set(names)) == len(names)
    expected = {f"open_clip:{model.removesuffix('-quickgelu')}/{tag}" for model, tag in open_clip.list_pretrained()}
    assert {name for name in names if "/" in name and name.startswith("open_clip:") and "FILE" not in name} == expected


def test_recommended_encoders_can_be_named():
    uris = [uri for group in catalogue.read_groups() for uri in group.encoders]
    assert len(set(uris)) == len(uris)
    for uri in [uri for uri in uris if not any(word in uri for word in ("FILE", "FOLDER", "ENCODER", "FIRST"))]:
        check_uri(uri)
    advised = {uri for encoders in catalogue.read_hardware().values() for uri in encoders}
    assert advised <= set(uris)


def test_weights_in_the_advice_by_hardware_have_the_size_that_it_states():
    known = {one.name: one for one in catalogue.list_known()}
    for encoders in catalogue.read_hardware().values():
        for uri, reason in encoders.items():
            assert reason.startswith(f"{known[uri].parameters * 4 / 1e9:.1f} GB"), uri


def test_every_licence_has_its_source_and_is_used():
    repos = {repo for facts in catalogue.read_models().values() for repo in facts.tags.values()}
    repos |= {one.name.partition(":")[2] for one in catalogue.list_known() if one.name.startswith("hf-hub:")}
    repos |= {"openai/clip-vit-base-patch32", "google/siglip2-base-patch16-224", "facebook/dinov2-base"}
    repos |= {"facebook/dinov3-vits16-pretrain-lvd1689m"}
    for entry in catalogue._content(catalogue.CATALOGUE_FILE)["licences"]:
        assert entry["source"].startswith("https://")
        assert any(catalogue.find_licence(repo) == entry["licence"] for repo in repos)


@pytest.mark.parametrize(
    ("repo", "licence"),
    [
        ("timm/vit_base_patch32_clip_224.openai", "MIT"),
        ("timm/vit_base_patch32_clip_224.laion400m_e32", "MIT"),
        ("timm/ViT-B-16-SigLIP2", "Apache-2.0"),
        ("apple/MobileCLIP-S1-OpenCLIP", "apple-amlr"),
        ("timm/MobileCLIP2-S0-OpenCLIP", "apple-amlr"),
        ("timm/vit_base_patch32_clip_224.metaclip_400m", "CC-BY-NC-4.0"),
        ("imageomics/bioclip", "MIT"),
        ("visheratin/nllb-clip-base-oc", "unknown"),
    ],
)
def test_licence_is_the_makers_or_unknown(repo, licence):
    assert catalogue.find_licence(repo) == licence


def test_text_rules_are_those_of_the_tokenizer():
    texts = {one.name: one.text for one in catalogue.list_known()}
    assert texts["open_clip:ViT-B-32/openai"] == "77 tokens, lower case"
    assert texts["open_clip:ViT-B-16-SigLIP2/webli"] == "64 tokens, lower case, no punctuation"
    assert texts["open_clip:ViT-H-14-worldwide/metaclip2_worldwide"] == "77 tokens"


def test_every_scheme_but_that_of_the_tests_is_listed():
    names = {one.name for one in list_listings()} - {"ENCODER[final,BLOCK]"}
    assert {name.partition(":")[0] for name in names} == set(list_encoders()) - {"toy"}


@pytest.mark.parametrize(
    ("uri", "kind", "message"),
    [
        ("light", UnknownNameError, "Did you mean 'lite'"),
        ("ViT-B-32/openai", UnknownNameError, "say open_clip:ViT-B-32/openai"),
        ("imageomics/bioclip", UnknownNameError, "say hf-hub:imageomics/bioclip"),
        ("ann/own-clip", UnknownNameError, "say hf-hub:ann/own-clip"),
        ("vit_small_patch14_dinov2", UnknownNameError, "say timm:vit_small_patch14_dinov2 for"),
        ("dinov3", UnknownNameError, "Did you mean 'timm:vit_small_patch16_dinov3.lvd1689m'"),
        ("timm:vit_small_patch14_dinov22", UnknownNameError, "Did you mean 'vit_small_patch14_dinov2'"),
        ("timm:vit_small_patch14_dinov2.lvd14m", UnknownNameError, "Did you mean 'vit_small_patch14_dinov2.lvd142m'"),
        ("timm:coatnet_0_224", UnknownNameError, "say timm:coatnet_0_224:FILE"),
        ("timm:", InputError, "names no model of timm"),
        ("timm:facebook/dinov2-base", InputError, "names no model of timm"),
        ("timm:test_vit@big", InputError, "names no size"),
        ("timm:own.pth", InputError, "names no model of timm: .*, timm:MODEL:FILE"),
        ("timm:test_vit:none.pth", EncoderUnavailableError, "there is no file 'none.pth'"),
        ("timm:local-dir:none", EncoderUnavailableError, "there is no folder 'none'"),
        ("openai/clip-vit-base-patch32", UnknownNameError, "say open_clip:ViT-B-32/openai"),
        ("siglip2", UnknownNameError, "Did you mean 'open_clip:ViT-L-16-SigLIP2-256/webli'"),
        ("open_clip:ViT-B32/openai", UnknownNameError, "no pretrained model 'ViT-B32'. Did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/opnai", UnknownNameError, "Did you mean 'openai'"),
        ("open_clip:ViT-B-32-quickgelu/opnai", UnknownNameError, "Did you mean 'openai'"),
        ("open_clip:ViT-L-14", InputError, "say open_clip:MODEL/TAG, such as open_clip:ViT-L-14/openai"),
        ("open_clip:/openai", InputError, "say open_clip:MODEL/TAG"),
        ("open_clip:own.pt", InputError, "names no weights: .*, open_clip:MODEL:FILE"),
        ("open_clip:ViT-B-32:none.pt", EncoderUnavailableError, "there is no file 'none.pt'"),
        ("open_clip:ViT-B-32:tests", InputError, "say open_clip:local-dir:"),
        ("open_clip:ViT-B-32:pyproject.toml", InputError, "must end in .safetensors"),
        ("open_clip:local-dir:none", EncoderUnavailableError, "there is no folder 'none'"),
        ("open_clip:local-dir:", EncoderUnavailableError, "there is no folder ''"),
        *((f"hf-hub:{name}", InputError, "names no repository") for name in ("", "bioclip", "a/b@", "a/b/c", "a b/c")),
        *((f"hf:{name}", InputError, "say hf:ORG/MODEL") for name in ("", "siglip", "a/b/c", "a b/c")),
        ("hf:./none", EncoderUnavailableError, "there is no folder './none'"),
        ("light[final,inner]", UnknownNameError, "Did you mean 'lite'"),
    ],
)
def test_a_wrong_name_is_refused_without_importing_torch(uri, kind, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with recorded("torch", "open_clip", "timm", "transformers") as tried, pytest.raises(kind, match=message):
        check_uri(uri)
    assert tried == []


def test_names_that_may_exist_pass_and_a_list_imports_neither_torch_nor_open_clip():
    with recorded("torch", "open_clip", "timm", "transformers") as tried:
        assert len(list_listings()) > 150
    assert tried == []
    short = ("toy", "auto", "lite", "lite[final,toy/final]", "hf-hub:a/b@v1.0", "timm:test_vit")
    long = ("open_clip:ViT-B-32-quickgelu/openai", "hf:google/siglip2-base-patch16-224@main")
    dino = "vit_small_patch14_dinov2.lvd142m@224"
    for uri in (*short, *long, f"timm:timm/{dino}", f"lite[final,timm:{dino}/final]"):
        check_uri(uri)


of_this_timm = pytest.mark.skipif(
    not catalogue.names_are_current("timm"), reason="timm is of another release: run scripts/make_timm_models.py"
)


@of_this_timm
def test_models_of_timm_are_those_of_timm(monkeypatch):
    content = json.loads(catalogue.TIMM_MODELS_FILE.read_text())
    monkeypatch.setattr(make_timm_models, "_measure", lambda name: {})
    facts = ("image_size", "licence")
    packaged = {name: {fact: model[fact] for fact in facts} for name, model in content["models"].items()}
    assert packaged == make_timm_models.describe_models()
    own = "vit_narrow_patch16_224"  # of tests/conftest.py, if another test of this process opened it
    assert content["untrained"] == [name for name in make_timm_models.list_untrained() if name != own]


def test_widths_of_models_of_timm_are_those_that_are_published():
    """From the tables of DINOv2, DINOv3 and ConvNeXt, and the model cards of timm."""
    published = {
        "timm:vit_small_patch14_dinov2.lvd142m": (384, 518, "Apache-2.0"),
        "timm:vit_base_patch16_dinov3.lvd1689m": (768, 256, "dinov3-license"),
        "timm:convnext_tiny.in12k": (768, 224, "Apache-2.0"),
        "timm:resnet50.a1_in1k": (2048, 224, "Apache-2.0"),
    }
    listed = {one.name: one for one in catalogue.list_timm()}
    assert {name: (listed[name].dim, listed[name].image_size, listed[name].licence) for name in published} == published
    assert round(listed["timm:vit_small_patch14_dinov2.lvd142m"].parameters / 1e6) == 22


def test_another_release_of_timm_or_open_clip_is_asked_itself(monkeypatch):
    monkeypatch.setattr(catalogue, "version", lambda name: "99.0")
    check_uri("timm:a_new_network.in1k")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-S-32", {"new": {"hf_hub": "laion/new/"}})
    check_uri("open_clip:ViT-S-32/new")


def test_plug_ins_are_listed_and_not_refused(monkeypatch):
    theirs = catalogue.EncoderListing("theirs:model", 8, "MIT")
    kind = type("Theirs", (ToyEncoder,), {"listing": classmethod(lambda cls: [theirs])})
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS._entries))
    ENCODERS.register("theirs")(kind)
    check_uri("theirs:model")
    assert theirs in list_listings()
