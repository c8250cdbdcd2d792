"""Upload to and download from a hub in this process, with the real client."""

import _socket
import json
import pickle
import socket

import numpy as np
import pytest
from click.testing import CliRunner
from huggingface_hub import ModelCard, constants, utils
from PIL import Image

from clipadapter import FewShotClassifier
from clipadapter.cli.app import app
from clipadapter.errors import ArtifactError, InputError
from clipadapter.persistence import History, load_model, pull, push, read_config, save_model
from clipadapter.persistence.card import GENERATED_MARK
from clipadapter.runtime.model_folder import list_own_files
from clipadapter.uncertainty import UncertaintyOptions
from clipadapter.utils.files import without_paths

from ..classifier.squares import squares
from ..configs import array_path
from ..conftest import CLIP, TINY
from .hub_stand_in import Hub

# The client's own way to send large files without xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub that the client of this process asks; the person has a token."""
    found = Hub()

    def connect(self, address):
        assert address[0] == "127.0.0.1", address
        return _socket.socket.connect(self, address)

    close = getattr(utils, "close_session", lambda: None)
    close()
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(constants, "ENDPOINT", found.url)
    template = found.url + "/{repo_id}/resolve/{revision}/{filename}"
    paths = {"HF_HUB_CACHE": str(tmp_path / "hub-cache"), "HF_TOKEN_PATH": str(tmp_path / "no-token")}
    options = {"HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, **paths}
    for name, value in options.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", "secret")
    utils.disable_progress_bars()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield found
    close()
    utils.enable_progress_bars()
    found.close()


def run(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_a_model_that_was_uploaded_and_downloaded_is_the_same(fitted, hub, tmp_path):
    folder = fitted.save(tmp_path / "model")
    url = fitted.push_to_hub("ann/colours", private=True)
    assert url == f"{hub.url}/ann/colours/commit/{2:040x}"
    assert hub.private == {"ann/colours": True}
    queries, _ = squares(seed=1)
    for place in ("ann/colours", folder):  # a folder is loaded as a repository is
        options = {"batch_size": 7, "uncertainty": UncertaintyOptions(reject=0.2)}
        again = FewShotClassifier.from_pretrained(place, cache=None, **options)
        # the same sums in the same order
        np.testing.assert_array_equal(again.predict_proba(queries), fitted.predict_proba(queries))
        assert again.class_names_ == ("blue", "green", "red")
        assert (again.batch_size, again.uncertainty_.decisions.reject) == (7, 0.2)
    files = hub.files("ann/colours")
    own = {str(array_path(folder, name).relative_to(folder)) for name in ("head", "support", "uncertainty")}
    assert set(files) == {".gitattributes", "README.md", "config.json", *own}
    card = files["README.md"].decode()
    assert 'FewShotClassifier.from_pretrained("ann/colours")' in card
    assert "clipadapter pull ann/colours --out model" in card
    assert ModelCard(card).data.library_name == "clipadapter"
    assert ("POST", "/api/validate-yaml") in hub.asked


def test_the_history_is_not_uploaded(fitted, hub, tmp_path):
    folder = fitted.save(tmp_path / "model")
    before = load_model(folder)
    facts = {"picture": "carol.jpg"}
    history = History.load(folder).with_change(before, before, "correct", facts, by="ann of accounting")
    save_model(folder, before, history=history)
    assert b"ann of accounting" in next((folder / "history").glob("log-*")).read_bytes()
    done = push(folder, "ann/colours")
    assert not any("history" in name for name in (*done.files, *hub.files("ann/colours")))
    sent = b"".join(hub.files("ann/colours").values())
    assert b"ann of accounting" not in sent and b"carol" not in sent


def test_a_model_that_is_fetched_over_another_can_be_undone(fitted, hub, tmp_path):
    fitted.push_to_hub("ann/colours")
    own = FewShotClassifier("toy", "zero-shot", cache=None).fit(*squares()).save(tmp_path / "model")
    before = (own / "config.json").read_bytes()
    pull("ann/colours", own)
    assert read_config(own).head.name == "linear-probe"
    last = History.load(own).changes[-1]
    assert (last.version, last.action, last.facts) == (2, "pull", {"repo": "ann/colours"})
    history, model = History.load(own).undo()
    save_model(own, model, history=history)
    assert (own / "config.json").read_bytes() == before


def test_no_path_of_this_machine_goes_to_the_hub(write_model, hub, tmp_path):
    images, labels = squares()
    place = write_model(tmp_path / "tiny", TINY, CLIP)
    paths = [tmp_path / f"secret-{i}.png" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)
    model = FewShotClassifier(f"open_clip:local-dir:{place}", "zero-shot", cache=None).fit(paths, labels)
    model.push_to_hub("ann/colours")
    sent = b"".join(hub.files("ann/colours").values())
    assert str(tmp_path).encode() not in sent and b"secret-" not in sent
    with pytest.raises(Exception, match="there is no folder 'tiny'"):
        FewShotClassifier.from_pretrained("ann/colours", cache=None)
    again = FewShotClassifier.from_pretrained("ann/colours", cache=None, encoder=model.encoder)
    assert again.predict(images) == model.predict(images)


def test_a_revision_is_the_model_of_then_and_an_altered_file_is_refused(fitted, hub):
    first = fitted.push_to_hub("ann/colours").rpartition("/")[2]
    other = FewShotClassifier("toy", "zero-shot", cache=None).fit(*squares())
    other.push_to_hub("ann/colours")

    def kind(**options):
        return type(FewShotClassifier.from_pretrained("ann/colours", cache=None, **options).head_).__name__

    assert kind(revision=first) == "LinearProbe"
    assert kind() == "ZeroShot"
    with pytest.raises(ArtifactError, match="no such branch, tag or commit"):
        kind(revision="nonsense")
    name = next(name for name in hub.files("ann/colours") if name.startswith("arrays/head-"))
    hub.put("ann/colours", name, hub.files("ann/colours")[name][:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"arrays/head-\w+.safetensors was altered"):
        kind()


def test_files_that_the_new_model_lacks_are_deleted_and_other_files_stay(hub, tmp_path):
    sets = UncertaintyOptions(sets="cv+", coverage=0.8)
    by_folds = FewShotClassifier("toy", "linear-probe", cache=None, uncertainty=sets)
    by_folds.fit(*squares()).push_to_hub("ann/colours")
    assert any(name.startswith("arrays/folds-") for name in hub.files("ann/colours"))
    hub.put("ann/colours", "notes.txt", b"mine")
    plain = FewShotClassifier("toy", "zero-shot", cache=None).fit(*squares()).save(tmp_path / "model", support=False)
    done = push(plain, "ann/colours")
    left = set(hub.files("ann/colours"))
    assert {name for name in left if name.startswith("arrays/")} == set(list_own_files(plain))
    assert "notes.txt" in left and done.others == ("notes.txt",)
    load_model(pull("ann/colours", tmp_path / "again"))


def test_a_second_time_needs_no_network(fitted, hub, tmp_path, monkeypatch):
    fitted.push_to_hub("ann/colours")
    FewShotClassifier.from_pretrained("ann/colours", cache=None, cache_dir=tmp_path / "mine")
    assert (tmp_path / "mine").is_dir() and not (tmp_path / "hub-cache" / "models--ann--colours").exists()
    before = len(hub.asked)
    for offline, options in ((True, {}), (False, {"local_files_only": True})):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        FewShotClassifier.from_pretrained("ann/colours", cache=None, cache_dir=tmp_path / "mine", **options)
        with pytest.raises(ArtifactError, match=r"not in the hub's cache.*Unset HF_HUB_OFFLINE"):
            FewShotClassifier.from_pretrained("ann/colours", **options)
    assert len(hub.asked) == before


def test_a_wrong_token_gives_an_error_with_advice(fitted, hub, monkeypatch):
    fitted.push_to_hub("ann/colours", private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ArtifactError, match=r"no repository of that name.*hf auth login"):
        FewShotClassifier.from_pretrained("ann/colours")
    FewShotClassifier.from_pretrained("ann/colours", token="secret", cache=None)
    with pytest.raises(ArtifactError, match=r"a token that may write to ann/colours"):
        fitted.push_to_hub("ann/colours")
    fitted.push_to_hub("ann/colours", token="secret")


def test_a_hub_that_is_down_gives_an_error(fitted, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ArtifactError, match="can't write to ann/colours on the hub"):
        fitted.push_to_hub("ann/colours")
    with pytest.raises(ArtifactError, match="does not answer"):
        FewShotClassifier.from_pretrained("ann/colours")


def test_an_invalid_name_and_a_repository_without_a_model_are_refused(hub):
    for name in ("no/such/folder", "what is this?"):
        with pytest.raises(InputError, match="neither a folder nor a name on the hub"):
            FewShotClassifier.from_pretrained(name)
    hub.repos["ann/other"], hub.private["ann/other"] = [{"model.safetensors": b"x"}], False
    with pytest.raises(ArtifactError, match="ann/other holds no model of clipadapter"):
        FewShotClassifier.from_pretrained("ann/other")
    assert hub.fetched() == set()


def test_exported_files_lie_beside_the_model(fitted, hub, tmp_path):
    names = ("model.onnx", "model.xml", "model.bin")
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    fitted.push_to_hub("ann/colours", exported=[tmp_path / "model.onnx", tmp_path / "model.xml"])
    assert [hub.files("ann/colours")[name] for name in names] == [name.encode() for name in names]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["gone.onnx"], "there is no file"),
        (["weights.pkl"], "no exported model"),
        (["model.xml"], r"there is no file .*model\.bin"),
        (["model.onnx", "other/model.onnx"], "the same name"),
    ],
)
def test_what_is_no_export_and_a_damaged_model_are_refused_before_anything_is_sent(names, words, fitted, hub, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name != "gone.onnx":
            (tmp_path / name).touch()
    with pytest.raises(InputError, match=words):
        fitted.push_to_hub("ann/colours", exported=[tmp_path / name for name in names])
    folder = fitted.save(tmp_path / "model")
    array_path(folder, "head").write_bytes(b"")
    with pytest.raises(ArtifactError, match="was altered"):
        push(folder, "ann/colours")
    assert hub.asked == []


def test_a_pulled_folder_is_a_model_like_others_and_files_that_are_not_ours_are_not_fetched(fitted, hub, tmp_path):
    fitted.push_to_hub("ann/colours")
    ours = set(hub.files("ann/colours")) - {".gitattributes"}
    for name in ("model_head.pkl", "sub/config.json", "arrays/mine.safetensors", "history/log.json"):
        hub.put("ann/colours", name, pickle.dumps({}))
    folder = pull("ann/colours", tmp_path / "model")
    assert hub.fetched() == ours
    assert {path.name for path in folder.iterdir()} == {"config.json", "README.md", "arrays"}
    assert len(list_own_files(folder)) == len(read_config(folder).files)
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert GENERATED_MARK in (folder / "README.md").read_text()
    assert FewShotClassifier.load(folder, cache=None).predict(squares(1)[0]) == ["red", "green", "blue"]
    (folder / "README.md").write_text("# Mine")
    assert (pull("ann/colours", folder) / "README.md").read_text() == "# Mine"


def test_a_name_without_an_organisation_is_the_persons_own_and_so_is_a_card_that_a_person_wrote(fitted, hub, tmp_path):
    folder = fitted.save(tmp_path / "model")
    assert push(folder, "colours").repo == "ann/colours"
    assert 'from_pretrained("ann/colours")' in hub.files("ann/colours")["README.md"].decode()
    (folder / "README.md").write_text("# Mine\n")
    push(folder, "colours")
    assert hub.files("ann/colours")["README.md"] == b"# Mine\n"


def test_push_and_pull_from_the_command_line_and_their_errors_are_one_line(fitted, hub, tmp_path):
    folder = fitted.save(tmp_path / "model")
    done = run("push", folder, "ann/colours", "--private", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["repo"] == "ann/colours" and "config.json" in told["files"] and told["others"] == []
    assert "the card has no figures" in done.stderr
    assert hub.private["ann/colours"]
    got = run("pull", "ann/colours", "--out", tmp_path / "again")
    assert got.exit_code == 0, got.stderr
    assert got.stdout.splitlines()[1:] == ["head     linear-probe", "encoder  toy", "classes  3"]
    assert load_model(tmp_path / "again").text.labels == ("blue", "green", "red")
    first = told["url"].rpartition("/")[2]
    assert run("pull", "ann/colours", "--out", tmp_path / "again", "--revision", first).exit_code == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    hub.asked.clear()
    for args, words in (
        (("push", tmp_path / "nothing", "ann/colours"), "there is no folder"),
        (("pull", "ann/nothing", "--out", tmp_path / "m"), "no repository of that name"),
        (("pull", "ann/colours", "--out", tmp_path / "other"), "holds other files than a model"),
    ):
        done = run(*args)
        assert done.exit_code == 1 and words in done.stderr and len(done.stderr.splitlines()) == 1
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    assert hub.fetched() == set()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("open_clip:local-dir:/home/ann/clip/", "open_clip:local-dir:clip"),
        ("open_clip:local-dir:/home/ann+bob/clip", "open_clip:local-dir:clip"),
        (r"open_clip:local-dir:C:\Users\ann\clip", "open_clip:local-dir:clip"),
        (
            "open_clip:local-dir:/home/ann/a[final,inner,simclr:/home/ann/b/final]",
            "open_clip:local-dir:a[final,inner,simclr:b/final]",
        ),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip:ViT-B-32/laion2b_s34b_b79k"),
        ("open_clip:ViT-B-32/openai:/home/ann/own.pt", "open_clip:ViT-B-32/openai:own.pt"),
        ("timm:resnet50.a1_in1k@160:/home/ann/own.pth", "timm:resnet50.a1_in1k@160:own.pth"),
        ("timm:local-dir:/home/ann/net", "timm:local-dir:net"),
        ("timm:resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("hf:/home/ann/clip", "hf:clip"),
        (r"hf:C:\Users\ann\clip", "hf:clip"),
        ("hf:openai/clip-vit-base-patch32", "hf:openai/clip-vit-base-patch32"),
        ("open_clip:RN50/openai[final,hf-hub:a/b/final]", "open_clip:RN50/openai[final,hf-hub:a/b/final]"),
        ("open_clip:RN50:/home/ann/own.pt[final,hf-hub:a/b/final]", "open_clip:RN50:own.pt[final,hf-hub:a/b/final]"),
    ],
)
def test_only_the_last_part_of_an_encoder_path_is_uploaded(name, told):
    assert without_paths(name) == told
