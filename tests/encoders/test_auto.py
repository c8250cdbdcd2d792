"""auto takes CLIP where it is available, else lite, and says so."""

import threading
import time
from types import SimpleNamespace

import open_clip
import pytest

from clipadapter.encoders import auto, create_encoder
from clipadapter.encoders import weights as hub
from clipadapter.encoders.open_clip import weights_files
from clipadapter.errors import EncoderUnavailableError, MissingExtraError, install_command


def test_its_files_are_those_of_open_clip():
    assert weights_files(open_clip.get_pretrained_cfg(*auto.MODEL.split("/"))) == (auto.SOURCE.repo, auto.SOURCE.names)


def failing(error):
    def open_encoder(rest, device):
        raise error

    return open_encoder


def test_it_is_clip_where_the_hub_answers_else_lite_and_without_both_names_both_remedies(monkeypatch, opened):
    tiny = opened("tiny")
    monkeypatch.setattr(hub.HubSource, "cached", lambda self: None)
    monkeypatch.setattr(auto, "hub_answers", lambda repo, name: True)
    monkeypatch.setattr(auto.OpenClipEncoder, "open", lambda rest, device: tiny)
    clip = create_encoder("auto").info
    assert clip.name == tiny.info.name and clip.note.endswith("the hub answers")
    monkeypatch.setattr(auto.OpenClipEncoder, "open", failing(EncoderUnavailableError("disk full")))
    failed = create_encoder("auto").info
    assert failed.name == "lite" and "disk full" in failed.note
    monkeypatch.setattr(auto, "hub_answers", lambda repo, name: False)
    lite = create_encoder("auto").info
    assert lite.name == "lite" and auto.LITE_NOTE in lite.note
    assert "auto took lite: the weights of CLIP are not on this machine" in lite.note
    monkeypatch.setattr(auto.LiteEncoder, "open", failing(MissingExtraError("no lite here")))
    with pytest.raises(EncoderUnavailableError) as error:
        create_encoder("auto")
    assert install_command("lite") in str(error.value) and "open_clip:local-dir:PATH" in str(error.value)


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
    answer = SimpleNamespace(commit_hash=commit)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: answer)
    assert hub.hub_answers("owner/repo", "file") is expected
