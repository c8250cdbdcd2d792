import sys

import pytest

from clipadapter.errors import install_command


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What the command sets for Gradio is put back, and not there yet when Gradio is imported, which remembers it."""
    pytest.importorskip("gradio")
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")


def test_wrong_arguments_are_refused_before_the_page_opens(tmp_path, run):
    (tmp_path / "file").touch()
    result = run("studio", tmp_path / "file", "--encoder", "toy", "--no-browser")
    assert result.exit_code == 1 and "is not a folder" in result.stderr
    result = run("studio", tmp_path / "p", "--encoder", "toy", "--head", "coop", "--no-browser")
    assert result.exit_code == 1 and "again after every picture" in result.stderr
    result = run("studio", tmp_path / "p", "--encoder", "toy", "--unlabelled", tmp_path / "x", "--no-browser")
    assert result.exit_code == 1 and "there is no folder" in result.stderr


def test_a_folder_above_the_class_folders_is_no_project(tmp_path, run, write_squares):
    for part in ("shots", "test"):
        write_squares(tmp_path / "data" / part, 1)
    result = run("studio", tmp_path / "data", "--encoder", "toy", "--no-browser")
    assert result.exit_code == 1
    assert f"Repeat with: clipadapter studio {tmp_path / 'data' / 'shots'} --encoder toy --no-browser" in result.stderr
    assert not (tmp_path / "data" / ".studio").exists()


def test_a_missing_extra_is_refused_before_the_encoder_is_opened(tmp_path, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = run("studio", tmp_path / "p", "--encoder", "open_clip:ViT-B-32/laion2b_s34b_b79k", "--no-browser")
    assert result.exit_code == 1 and install_command("studio") in result.stderr


def test_an_open_address_without_a_password_is_a_warning(tmp_path, run, monkeypatch):
    def ended(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("clipadapter.cli.commands.studio._serve", ended)
    words = ("studio", tmp_path / "p", "--encoder", "toy", "--no-cache", "--no-browser")
    assert "give --password" in run(*words, "--host", "0.0.0.0").stderr
    assert "give --password" not in run(*words, "--host", "0.0.0.0", "--password", "x").stderr
    assert "give --password" not in run(*words).stderr


@pytest.mark.parametrize(("host", "url"), [("::1", "http://[::1]:"), ("127.0.0.1", "http://127.0.0.1:")])
def test_the_page_is_served_on_ipv4_and_ipv6(host, url):
    from clipadapter.cli.commands.studio import _serve
    from clipadapter.studio.page import LOOPBACK_HOSTS

    class Page:
        def launch(self, *, server_name, **_):
            assert server_name in LOOPBACK_HOSTS
            return None, f"http://{server_name}:7860/", None

    assert _serve(Page(), host, None, None, False).startswith(url)
