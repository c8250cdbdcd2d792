"""The documentation site: built with warnings as errors, no dead link, nothing from another host."""

import importlib
import re
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import clipadapter
from clipadapter.cli.app import app
from clipadapter.heads import list_heads

from .pages import ROOT, read_page

LOADS = {"link": "href", **dict.fromkeys(("script", "img", "iframe", "source", "video", "audio"), "src")}
ELSEWHERE = re.compile(r"(?:[a-z][a-z+.-]*:|//)", re.IGNORECASE)
PARTS = "heads encoders features data metrics adaptation uncertainty runtime runtime.export monitor bench testing"

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """What a page is called from outside (ids), what it loads, and where it leads."""

    def __init__(self, html):
        super().__init__()
        self.ids, self.loads, self.links = set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = {key: value or "" for key, value in attrs}
        self.ids |= {given[key] for key in ("id", "name") if key in given}
        if tag in LOADS and LOADS[tag] in given:
            self.loads.append(given[LOADS[tag]])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; the sockets of this process are sealed while it is made."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ruff.__main__", None)  # it starts a process for each signature, to break its lines
        patch.setattr("material.plugins.search.plugin.SearchIndex.add_entry_from_context", lambda *page: None)
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Pages by their address within the site, such as ``trust/index.html``."""
    return {path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def target(page, link):
    """The address of a file within the site that a link of a page leads to, and what stands behind its #."""
    path, anchor = urldefrag(urljoin(f"/{page}", link))
    return unquote(path).lstrip("/") + ("index.html" if path.endswith("/") else ""), unquote(anchor)


def test_no_link_within_the_site_is_dead(site, pages):
    dead = []
    for name, page in pages.items():
        for link in [*page.links, *page.loads]:
            if ELSEWHERE.match(link):
                continue
            path, anchor = target(name, link)
            if not (site / path).is_file() or (anchor and path in pages and anchor not in pages[path].ids):
                dead.append(f"{name}: {link}")
    assert not dead


def test_nothing_is_loaded_from_another_host(site, pages):
    loads = [f"{name}: {load}" for name, page in pages.items() for load in page.loads if ELSEWHERE.match(load)]
    styles = {path.name: path.read_text(encoding="utf-8") for path in site.rglob("*.css")}
    inline = {path.name: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    named = r"(?:url\(|@import)\s*[\"']?(?:https?:)?//"
    assert styles
    assert not loads
    assert not [name for name, text in {**styles, **inline}.items() if re.search(named, text)]


def test_every_public_name_has_its_entry(site, pages):
    for part in PARTS.split():
        name = f"reference/api/{part.rpartition('.')[2]}/index.html"
        text = (site / name).read_text(encoding="utf-8")
        entries = {each.rpartition(".")[2] for each in pages[name].ids if each.startswith(f"clipadapter.{part}.")}
        # What a registry gives, and a name for a type, is no definition of its own: a sentence tells of it.
        public = importlib.import_module(f"clipadapter.{part}").__all__
        assert not [each for each in public if each not in entries and f"<code>{each}</code>" not in text], part
    top = (site / "reference/api/index.html").read_text(encoding="utf-8")
    assert not [name for name in clipadapter.__all__ if name != "__version__" and f"<code>{name}</code>" not in top]


def test_every_command_and_head_is_listed(site):
    commands = (site / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    heads = (site / "reference" / "heads" / "index.html").read_text(encoding="utf-8")
    assert not [name for name in app.list_commands(None) if f"Usage: clipadapter {name} " not in commands]
    assert not [name for name in list_heads() if f"<code>{name}</code>" not in heads]
    assert heads.index("<code>auto</code>") < heads.index("<code>clip-adapter</code>") < heads.index("<code>afa</code>")


def test_the_menu_is_short_and_the_first_page_leads_to_all_of_it():
    def files(menu):
        if isinstance(menu, str):
            return [menu]
        return [name for entry in (menu.values() if isinstance(menu, dict) else menu) for name in files(entry)]

    menu = set(files(load_config(str(ROOT / "mkdocs.yml")).nav))
    assert len(menu) <= 30
    assert menu - {"index.md"} == menu & set(re.findall(r"\]\(([\w./-]+\.md)", read_page("docs/index.md")))
