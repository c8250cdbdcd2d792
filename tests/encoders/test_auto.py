"""auto takes CLIP where it is available, else lite, and says so."""

import threading
import time

import open_clip
import pytest

from clipadapter.encoders import auto, create_encoder
from clipadapter.encoders import weights as hub
from clipadapter.encoders.open_clip import weights_files
from clipadapter.errors import EncoderUnavailableError, MissingExtraError, install_command


@pytest.fixture
def no_weights(monkeypatch):
    monkeypatch.setattr(hub, "cached_file", lambda repo, names, revision=None: None)


def test_its_files_are_those_of_open_clip():
    assert weights_files(open_clip.get_pretrained_cfg(*auto.MODEL.split("/"))) == (auto.SOURCE.repo, auto.SOURCE.names)


def test_without_weights_and_hub_it_is_lite(no_weights, monkeypatch):
    monkeypatch.setattr(auto, "hub_answers", lambda repo, name: False)
    info = create_encoder("auto").info
    assert info.name == "lite"
    assert "auto took lite: the weights of CLIP are not on this machine" in info.note
    assert auto.LITE_NOTE in info.note


def test_where_the_hub_answers_it_is_clip(no_weights, monkeypatch, opened):
    monkeypatch.setattr(auto, "hub_answers", lambda repo, name: True)
    tiny = opened("tiny")
    monkeypatch.setattr(auto.OpenClipEncoder, "open", lambda rest, device: tiny)
    info = create_encoder("auto").info
    assert info.name == tiny.info.name
    assert info.note.endswith("the hub answers")


def test_where_the_download_fails_it_is_lite(no_weights, monkeypatch):
    def fail(rest, device):
        raise EncoderUnavailableError("disk full")

    monkeypatch.setattr(auto, "hub_answers", lambda repo, name: True)
    monkeypatch.setattr(auto.OpenClipEncoder, "open", fail)
    info = create_encoder("auto").info
    assert info.name == "lite"
    assert "disk full" in info.note


def test_without_both_it_names_both_remedies(no_weights, monkeypatch):
    def missing(rest, device):
        raise MissingExtraError("no lite here")

    monkeypatch.setattr(auto, "hub_answers", lambda repo, name: False)
    monkeypatch.setattr(auto.LiteEncoder, "open", missing)
    with pytest.raises(EncoderUnavailableError) as error:
        create_encoder("auto")
    assert install_command("lite") in str(error.value)
    assert "open_clip:local-dir:PATH" in str(error.value)


@pytest.mark.parametrize("offline", [False, True])
def test_a_dead_network_is_no_answer_nor_is_offline_mode(offline, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    assert not hub.hub_answers("owner/repo", "file")


def test_a_network_that_hangs_is_not_waited_for(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(hub, "_request", lambda repo, name, timeout: release.wait(30))
    start = time.monotonic()
    assert not hub.hub_answers("owner/repo", "file", timeout=0.05)
    assert time.monotonic() - start < 5
    release.set()


@pytest.mark.parametrize(("commit", "expected"), [("abc", True), (None, False)])
def test_an_answer_must_be_the_hubs(commit, expected, monkeypatch):
    class Metadata:
        commit_hash = commit

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: Metadata())
    assert hub.hub_answers("owner/repo", "file") is expected
