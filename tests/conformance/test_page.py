"""docs/conformance.md is the page of the JSON beside it, and that is of the clients as they are pinned."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.clients import CLIENTS
from tests.conformance.page import DOCS, page


@pytest.fixture(scope="module")
def document() -> Any:
    return json.loads((DOCS / "conformance.json").read_text())


def test_the_page_says_what_was_found(document: Any) -> None:
    assert (DOCS / "conformance.md").read_text() == page(document)


def test_the_table_is_of_the_clients_that_are_pinned(document: Any) -> None:
    found = {name: client["version"] for name, client in document["clients"].items()}
    assert found == {client.name: client.version for client in CLIENTS}


def test_what_fails_is_told_below_the_table(document: Any) -> None:
    outcomes = {"plain": "ok", "tools": "Refused: no\ntools"}
    written = page({**document, "clients": {"one": {"version": "1.2", "outcomes": outcomes}}})
    (row,) = [line for line in written.splitlines() if line.startswith("| one 1.2 ")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["one 1.2", "ok", "-", "-", "-", "no (1)", "-", "-", "-"]
    assert written.endswith("\n1. Refused: no tools\n")
