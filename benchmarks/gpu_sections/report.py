"""What was found, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.gpu_sections.outline import Document, Section, passed
from benchmarks.instruments.results import markdown_table


def text(sections: Sequence[Section], found: Mapping[str, Document], note: str) -> str:
    """Markdown: a line for each section, then their tables, then all that failed."""
    rows = []
    for section in sections:
        document = found.get(section.name)
        if document is None:
            rows.append([section.name, section.title, "not begun", "", ""])
            continue
        count = len(document["attempts"])
        good = sum(one["passed"] for one in document["attempts"])
        state = document["state"].splitlines()[0]
        rows.append(
            [section.name, section.title, state, f"{good} of {count}", f"{document.get('seconds', 0):.0f}"]
        )
    parts = [note, markdown_table(["section", "", "state", "passed", "s"], rows)]
    for section in sections:
        if section.name in found:
            parts += _section(section, found[section.name])
    return "\n\n".join(parts)


def _section(section: Section, document: Document) -> list[str]:
    parts = [f"## {section.title}"]
    attempts = [
        [one["what"], "passed" if one["passed"] else "FAILED", one["told"], one["seconds"]]
        for one in document["attempts"]
    ]
    if attempts:
        parts.append(markdown_table(["", "", "", "s"], attempts))
    parts += [f"### {table['title']}\n\n{table['text']}" for table in document["tables"]]
    if not passed(document):
        for one in document["attempts"]:
            if not one["passed"]:
                parts.append(f"FAILED: {one['what']}\n\n```\n{one.get('traceback', one['error'])}\n```")
        if document["state"].startswith("failed"):
            parts.append(f"```\n{document['state']}\n```")
    return parts
