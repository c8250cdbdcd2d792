"""A page as what it is made of: its tags with their attributes, its text, and the JSON that it carries."""

import json
from html.parser import HTMLParser


class Markup(HTMLParser):
    """Tags as pairs of a name and its attributes; the text outside scripts and styles; the JSON as data."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.texts, self.inside = [], [], ""
        self.feed(html)
        self.data = next((json.loads(text) for tag, text in self.texts if tag == "json"), None)
        parts = (text for tag, text in self.texts if tag not in ("json", "script", "style"))
        self.text = " ".join(" ".join(parts).split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.inside = "json" if attributes.get("type") == "application/json" else tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, text):
        self.texts.append((self.inside, text))

    def all(self, *names):
        """The attributes of each tag of these names."""
        return [attributes for tag, attributes in self.tags if tag in names]
