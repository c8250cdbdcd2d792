import json

from clipadapter import list_encoders


def test_encoders_show_width_and_licence_but_not_the_toy(run):
    found = {one["name"]: one for one in json.loads(run("encoders", "--json").stdout)}
    assert {name.partition(":")[0] for name in found} == set(list_encoders()) - {"toy"}
    assert found["open_clip:ViT-B-32/laion2b_s34b_b79k"]["dim"] == 512
    assert found["open_clip:ViT-B-32/laion2b_s34b_b79k"]["licence"] == "MIT"
    assert found["lite"]["note"]


def test_encoders_by_pattern(run):
    names = [line.split()[0] for line in run("encoders", "open_clip:ViT-B*").stdout.splitlines()[1:]]
    assert "open_clip:ViT-B-16/openai" in names
    assert "open_clip:ViT-B-16-quickgelu/openai" not in names  # the same encoder
    assert all(name.startswith("open_clip:ViT-B") for name in names)
    assert run("encoders", "toy").stdout.splitlines()[1].split()[:2] == ["toy", "32"]


def test_an_unknown_encoder(run):
    result = run("encoders", "lit")
    assert result.exit_code == 1
    assert "Did you mean 'lite'?" in result.stderr
