"""A page as a browser reads it, and a text that must not become markup on its way there."""

from __future__ import annotations

from html.parser import HTMLParser

NASTY = "<script>alert(1)</script> & \"quoted\" 'too' {{ title }}"

VOID = {"meta"}


class Parsed(HTMLParser):
    """Elements and texts of a page; refuses tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}
