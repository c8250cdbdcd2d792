import json

from clipadapter import list_heads
from clipadapter.heads import head_info


def test_heads(run):
    result = run("heads")
    table = result.stdout.partition("\n\n")[0]
    assert [line.split()[0] for line in table.splitlines()[1:]] == list_heads()
    marked = {line.split()[0] for line in table.splitlines()[1:] if line.split()[1].startswith("*")}
    assert marked == {name for name in list_heads() if head_info(name).cls.transductive} >= {"zlap"}
    assert [one["name"] for one in json.loads(run("heads", "--json").stdout)] == list_heads()


def test_a_pattern_that_matches_no_head_finds_those_that_contain_it(run):
    result = run("heads", "adapter-f", "--json")
    assert [one["name"] for one in json.loads(result.stdout)] == ["tip-adapter-f"]
    assert "no head is called 'adapter-f': showing tip-adapter-f, the only one" in result.stderr
    result = run("heads", "probe", "--json")
    assert "linear-probe" in [one["name"] for one in json.loads(result.stdout)]
    assert "clip-adapter" not in [one["name"] for one in json.loads(result.stdout)]


def test_one_head_shows_its_parameters(run):
    result = run("heads", "linear-probe")
    assert "C: inverse strength of the L2 penalty" in result.stdout
    assert ["folds", "3"] in [line.split() for line in result.stdout.splitlines()]
    assert ">>>" not in result.stdout


def test_heads_say_how_close_they_are_to_their_source(run):
    listed = {line.split()[0]: line for line in run("heads").stdout.partition("\n\n")[0].splitlines()}
    assert [kind in listed[name] for name, kind in (("auto", " own "), ("afa", " inspired "))] == [True, True]
    assert "partial: only in part as published" in run("heads").stdout.splitlines()
    text, (found,) = run("heads", "bdc-adapter").stdout, json.loads(run("heads", "bdc-adapter", "--json").stdout)
    assert found["fidelity"]["kind"] == "partial"
    assert f"Fidelity (partial): Only in part as published. {found['fidelity']['statement']}\n" in text
    assert text.count("Fidelity") == 1


def test_presets_come_with_what_their_values_are(run):
    text, found = run("heads", "tip-adapter").stdout, json.loads(run("heads", "tip-adapter", "--json").stdout)
    assert "Start values of the authors' search, not the values behind their figures" in text
    assert found[0]["preset_note"].startswith("Start values of the authors' search")
    assert "Presets" not in run("heads", "knn").stdout
