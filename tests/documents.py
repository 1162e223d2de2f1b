"""The pages that people read: what they tell to type, to save, and where they lead."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "stacks_registry" / "README.md"])
GUIDE = ROOT / "docs" / "adding_a_domain.md"


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def steps(text: str) -> list[tuple[str, str]]:
    """What a page has its reader do, in order: ("run", a command of a ```console block, whose lines may be
    several) and ("save NAME", the block that follows "Save as `NAME`")."""
    found: list[tuple[str, str]] = []
    pattern = r"(?:Save as `([\w.]+)`:\n\n)?^```(\w+)\n(.*?)^```$"
    for name, language, body in re.findall(pattern, text, re.MULTILINE | re.DOTALL):
        if name:
            found.append((f"save {name}", body))
        elif language == "console":
            found += [("run", command.strip()) for command in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]]
    return found


def commands(page: Path, *programs: str) -> list[str]:
    """Those of a page's commands that run one of `programs`, without variables that are set before them."""
    shown = [text for what, text in steps(page.read_text(encoding="utf-8")) if what == "run"]
    plain = [re.sub(r"^(?:[A-Z_]+=\S+ )+", "", command) for command in shown]
    return [command for command in plain if command.split()[0] in programs]


def snippets(page: Path) -> list[str]:
    """Python that a page shows, but for what is to be saved."""
    text = re.sub(r"Save as `[\w.]+`:\n\n```\w+\n.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
