import json

from clipadapter import list_encoders

from ...imports import recorded


def test_encoders_are_grouped_by_what_they_are_good_for(run):
    with recorded("torch", "open_clip") as tried:
        text = run("encoders").stdout
    assert tried == []
    titles = ("FIRST", "EVERYDAY", "BEST", "FAST", "BIOLOGY", "CLASS", "PICTURES", "YOUR OWN", "BY HARDWARE")
    for title, part in zip(titles, text.split("\n\n"), strict=False):
        assert part.startswith(title)
    (line,) = [line for line in text.split("\n") if line.startswith("open_clip:ViT-L-16-SigLIP2-256/webli ")]
    for fact in ("882 M", "3.5 GB", "256", "1024", "Apache-2.0", "64 tokens, lower case, no punctuation"):
        assert fact in line


def test_json_has_all_encoders_but_the_toy(run):
    found = {one["name"]: one for one in json.loads(run("encoders", "--json").stdout)}
    assert {name.partition(":")[0] for name in found} - {"ENCODER[final,BLOCK]"} == set(list_encoders()) - {"toy"}
    line = found["open_clip:ViT-B-32/laion2b_s34b_b79k"]
    assert (line["dim"], line["licence"], line["groups"]) == (512, "MIT", ["first-tries"])
    assert found["lite"]["note"]


def test_encoders_by_pattern(run):
    names = [line.split()[0] for line in run("encoders", "open_clip:ViT-B*").stdout.splitlines()[1:]]
    assert "open_clip:ViT-B-16/openai" in names
    assert "open_clip:ViT-B-16-quickgelu/openai" not in names  # the same encoder
    assert all(name.lower().startswith("open_clip:vit-b") for name in names)
    assert run("encoders", "toy").stdout.splitlines()[1].split()[0] == "toy"


def test_a_text_without_wildcards_finds_all_that_contain_it(run):
    names = [line.split()[0] for line in run("encoders", "BioCLIP").stdout.splitlines()[1:]]
    assert names == ["hf-hub:imageomics/bioclip-2", "hf-hub:imageomics/bioclip"]
    assert "open_clip:ViT-B-32/openai" in run("encoders", "open_clip:ViT-B-32-quickgelu/openai").stdout


def test_models_of_timm_are_listed_for_patterns_that_can_name_them(run):
    names = [line.split()[0] for line in run("encoders", "timm:vit_small_patch14*").stdout.splitlines()[1:]]
    assert names == ["timm:vit_small_patch14_dinov2.lvd142m", "timm:vit_small_patch14_reg4_dinov2.lvd142m"]
    (line,) = [row for row in run("encoders", "*convnext_tiny.in12k").stdout.splitlines() if row.startswith("timm:")]
    assert line.split()[1:8] == ["28", "M", "0.1", "GB", "224", "768", "Apache-2.0"]
