"""The page as a server: what it serves, to whom, and what it requests."""

import asyncio
import gc
import re
import socket
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from clipadapter import studio
from clipadapter.errors import InputError
from clipadapter.studio import build_page
from clipadapter.studio.project import prepare_uploads

from .conftest import fill

DOCS = (Path(__file__).parents[2] / "docs" / "studio.md").read_text(encoding="utf-8")


pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # event loops that Gradio leaves open


@pytest.fixture
def local(monkeypatch):
    """Lets connections to the machine itself through, and keeps the addresses of all."""
    refuse, inner, addresses = socket.socket.connect, socket.socket.__bases__[0].connect, []

    def connect(self, address):
        addresses.append(address)
        near = isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1")
        return inner(self, address) if near else refuse(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    return addresses


@pytest.fixture(scope="module", autouse=True)
def collected():
    """The loops that pages leave open are freed in the last test here, whose warnings are passed over."""
    yield
    gc.collect()


@pytest.fixture
def page(tmp_path, local, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    made = build_page(tmp_path / "p", encoder="toy", cache=None)
    yield made
    made.close(verbose=False)
    made.session.close()
    asyncio.set_event_loop(None)


def get(url, body=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, named)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""


def test_only_the_page_and_exported_files_are_served(page, png, tmp_path, local):
    page.session.project.add_class("cat")
    (page.session.project.root / "cat" / "1.png").write_bytes(png("red"))
    (tmp_path / "beside.png").write_bytes(png("red"))
    _, url, _ = page.launch(prevent_thread_lock=True)
    status, text = get(url)
    assert status == 200
    asked = re.findall(r'(?:src|href)="(https?:[^"]+)"', text)
    assert [one for one in asked if not one.startswith(url)] == []
    for path in ("cat/1.png", ".studio/journal.jsonl", ".studio/lock", "../beside.png", "/etc/passwd"):
        path = path if path.startswith("/") else page.session.project.root / path
        assert get(f"{url}gradio_api/file={path}")[0] == 403
    made = page.session.project.root / ".studio" / "export" / "model.zip"
    made.parent.mkdir()
    made.write_bytes(b"a model")
    assert get(f"{url}gradio_api/file={made}") == (200, "a model")
    assert all(address[0] in ("127.0.0.1", "::1") for address in local)


def test_an_exported_file_is_served_and_no_other_file_of_its_name_is_replaced_or_served(page, tmp_path, local):
    request, file, other = SimpleNamespace(session_hash="a"), tmp_path / "p-model.onnx", tmp_path / "thesis"
    fill(page.session, 1)
    other.write_bytes(b"mine")
    _, url, _ = page.launch(prevent_thread_lock=True)

    def export():
        note, _ = page._export(request)
        return note or page._tab(request).note.text

    for make in (lambda: file.symlink_to(other), lambda: file.write_bytes(b"mine")):
        make()
        assert "is a link" in export() if file.is_symlink() else "is not a file that the studio" in export()
        assert get(f"{url}gradio_api/file={file}")[0] == 403
        assert file.read_bytes() == other.read_bytes() == b"mine"
        file.unlink()
    for _ in range(2):  # its own file is replaced
        assert export().startswith("Exported.")
        assert get(url.rstrip("/") + f"/gradio_api/file={file}", Range="bytes=0-3")[0] in (200, 206)


@pytest.mark.parametrize("name", ["export", "export/model.zip", "export/sub/file"])
def test_no_link_is_served(name, page, tmp_path, local):
    (tmp_path / "home").mkdir()
    link = page.session.project.root / ".studio" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(tmp_path / "home")
    with pytest.raises(InputError, match="is a link"):
        page.launch(prevent_thread_lock=True)


def test_only_our_own_temporary_files_are_removed(tmp_path):
    uploads = tmp_path / ".studio" / "uploads"
    own = [f"{'0a' * 32}/picture.png", "tried-abcd_123/picture.png", "tmpabcd_123"]
    others = ["mine.txt", "tried/mine.txt", "0a/mine.txt"]
    for name in [*own, *others]:
        (uploads / name).parent.mkdir(parents=True, exist_ok=True)
        (uploads / name).touch()
    assert prepare_uploads(tmp_path) == uploads
    assert {path.relative_to(uploads).as_posix() for path in uploads.rglob("*") if path.is_file()} == {*others}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".studio").symlink_to(tmp_path / ".studio")
    with pytest.raises(InputError, match="is a link"):
        prepare_uploads(tmp_path / "other")


def test_an_archive_has_the_files_of_a_model_only(tmp_path):
    from clipadapter.studio.page import _write_archive

    own = ("config.json", f"arrays/head-{16 * '0'}.safetensors", f"history/log-{16 * '0'}.json")
    for name in (*own, "history/mine.txt", "mine.txt"):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(name)
    _write_archive(tmp_path / "model", tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert {name: archive.read(name).decode() for name in archive.namelist()} == {name: name for name in own}


def test_a_picture_to_try_is_passed_on_as_it_was_uploaded(page, tmp_path):
    from gradio.data_classes import ImageData

    (tmp_path / "IMG_1.HEIC").write_bytes(b"what Pillow can't open")
    (tried,) = (block for block in page.blocks.values() if block.elem_id == "cs-try")
    payload = ImageData(path=str(tmp_path / "IMG_1.HEIC"), orig_name="IMG_1.HEIC")
    assert tried.preprocess(payload) == str(tmp_path / "IMG_1.HEIC")
    assert tried.preprocess(None) is None


def test_no_other_host_is_answered_or_asked_and_no_function_is_a_public_endpoint(page, local):
    _, url, _ = page.launch(prevent_thread_lock=True)
    assert get(url, Host="attacker.example")[0] == 400
    assert get(url, Host="localhost")[0] == 200
    for path in ("file=https://example.com/a.png", "file=HTTP:/example.com/a.png", "proxy=https://a.hf.space/x"):
        assert get(f"{url}gradio_api/{path}")[0] == 403
    status, text = get(f"{url}gradio_api/info")
    assert status == 200 and '"named_endpoints":{}' in text.replace(" ", "")
    assert page.analytics_enabled is page.run_history is False and "fonts.googleapis" not in get(url)[1]
    assert all(address[0] in ("127.0.0.1", "::1") for address in local if isinstance(address, tuple))


def test_the_result_of_a_save_is_reported(page, upload):
    request, project, session = SimpleNamespace(session_hash="a"), page.session.project, page.session

    def save():
        session.notify_change()
        _, text, download = page._save(str(session.default_model_folder), request)
        return text, download.visible, page._tab(request).note

    text, is_visible, note = save()
    assert (text, is_visible) == ("", False) and note.is_error and "nothing to save yet" in note.text
    assert 'data-note="1"' in page._poll(request)[0]  # shown at once, though nothing has changed
    for name in ("cat", "do`g", "eel"):
        project.add_class(name)
    project.add_pictures("cat", [upload("red")])
    assert "`` do`g ``, `eel` have no pictures: the model knows only the class name." in save()[0]
    project.add_pictures("eel", [upload("blue")])
    project.add_pictures("do`g", [upload("green")])
    text, is_visible, note = save()
    assert text.endswith(" photo.jpg`.") and is_visible and note.text == f"Saved: {session.default_model_folder}"


def test_only_a_person_at_this_machine_chooses_the_folder_of_the_model(page, tmp_path):
    request, chosen = SimpleNamespace(session_hash="a"), tmp_path / "chosen"
    fill(page.session, 1)
    page.launch(server_name="0.0.0.0", prevent_thread_lock=True)
    assert page._load_page(request)[0].interactive is False
    page._save(str(chosen), request)
    assert not chosen.exists() and page.session.default_model_folder.is_dir()
    page.close(verbose=False)
    page.launch(prevent_thread_lock=True)
    folder = page._load_page(request)[0]
    assert folder.interactive and folder.value == str(page.session.default_model_folder)
    assert page._save("chosen", request)[0] == str(chosen)  # as a full path
    assert (chosen / "config.json").is_file()


def test_the_space_of_the_docs_can_be_built(tmp_path, monkeypatch):
    (code,) = re.findall(r"<!-- app -->\n```python\n(.*?)```", DOCS, re.DOTALL)
    assert 3 <= len(code.strip().splitlines()) <= 5 and code.count('encoder="lite"') == 1
    monkeypatch.chdir(tmp_path)
    launched = []
    monkeypatch.setattr("clipadapter.studio.page.Page.launch", lambda self: launched.append(self))
    (tmp_path / "app.py").write_text(code.replace('encoder="lite"', 'encoder="toy", cache=None'))
    names = {}
    exec((tmp_path / "app.py").read_text(), names)
    assert launched == [names["page"]] and (tmp_path / "pictures" / ".studio").is_dir()
    names["page"].session.close()


def test_uploads_from_pages_of_other_hosts_are_refused(page, local):
    _, url, _ = page.launch(prevent_thread_lock=True)
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\ndata\r\n--x--\r\n'

    def post(**headers):
        return get(f"{url}gradio_api/upload", body, Content_Type="multipart/form-data; boundary=x", **headers)[0]

    assert post(Sec_Fetch_Site="cross-site") == post(Sec_Fetch_Site="same-site") == 403
    # Browsers leave Sec-Fetch-Site out where the page was not sent over HTTPS nor from this machine.
    own = url.rstrip("/")
    for origin in ("http://attacker.example", "null", f"{own}0", own.replace("http:", "http://user@")):
        assert post(Origin=origin) == 403
    assert post() == post(Sec_Fetch_Site="same-origin") == post(Origin=own) == 200
    assert post(Sec_Fetch_Site="same-origin", Origin="https://name-of-a-proxy.example") == 200
    assert post(Origin="https://proxy.example", X_Forwarded_Host="proxy.example") == 200


@pytest.mark.parametrize(("theme", "background"), [("body {", "#ffffff"), ("body.dark {", "#27272a")])
def test_the_mark_of_a_picture_unlike_every_class_has_a_warning_colour_that_can_be_read(theme, background):
    templates = Path(studio.__file__).parent / "templates"
    assert '<p class="cs-unlike" role="note">' in (templates / "prediction.html").read_text()
    style = (templates / "studio.css").read_text()
    assert re.search(r"\.cs-unlike strong\) \{ color: var\(--cs-bad\);", style)
    colour = re.search(re.escape(theme) + r".*--cs-bad: (#\w{6})", style)[1]
    light, dark = sorted((_luminance(colour), _luminance(background)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2.2, 1.4.3


def _luminance(colour):
    """Of WCAG 2.2."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("head", ["autoo", "coop", "transclip", "prolip"])
def test_a_wrong_head_leaves_no_folder_behind(tmp_path, head):
    with pytest.raises(InputError, match=head):
        build_page(tmp_path / "p", encoder="toy", head=head, cache=None)
    assert not (tmp_path / "p").exists()
