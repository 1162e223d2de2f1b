"""`docs/hostile_inputs.md` says what the server survives and which tests hold it: they are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "hostile_inputs.md").read_text(encoding="utf-8")


def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return {function.name for function in functions}


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 100
    assert not [f"{path}::{name}" for path, name in named if name not in functions_of(path)]


def test_every_input_has_its_answer_and_at_least_one_test() -> None:
    rows = re.findall(r"^\d+\. (.*(?:\n   .*)*)", PAGE, re.MULTILINE)
    assert len(rows) == 37
    assert not [row for row in rows if "**" not in row or "::test_" not in row]


def test_every_test_that_is_named_for_an_input_is_on_the_page() -> None:
    named = set(re.findall(r"::(test_\w+)`", PAGE))
    sources = sorted((ROOT / "tests").rglob("test_*.py"))
    hostile = {
        name for path in sources for name in re.findall(r"def (test_hostile_\d+\w*)", path.read_text())
    }
    assert not hostile - named
