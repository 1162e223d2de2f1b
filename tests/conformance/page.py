"""docs/conformance.md and the JSON beside it: what each client was found to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.instruments.checkout import ROOT
from benchmarks.instruments.results import markdown_table

DOCS = ROOT / "docs"
TITLES = {
    "plain": "plain",
    "streaming": "streaming",
    "multi_turn": "multi-turn",
    "structured": "structured output",
    "tools": "tools",
    "logprobs": "log-probabilities",
    "errors": "errors",
    "routing": "routing",
}
"""What a client may be asked for -> its column."""
NOT_OFFERED = "-"

INTRODUCTION = """\
# Clients

What clients of OpenAI's API do with this server, each as its authors publish it, and told only where the
server is: `python -m tests.conformance`, which writes this page. `make test` replays what they sent.

- **streaming**: the text of a stream is that of the whole answer, and where it is told, so is the usage;
- **multi-turn**: what the server returned is sent back as the client keeps it, and answered;
- **structured output**: an object of a schema, by `response_format`, and by a call where the client can;
- **tools**: with `auto` the request is taken; with `required` the answer is a call that fits the function,
  and the result is taken back. Whether a base of this size calls what it should is not asked;
- **errors**: an unknown model is the client's own exception for it;
- **routing**: the composition is chosen by the field `routing`, or by the model's name.

`-`: not tried: most of these clients do not offer it.
"""


def write(document: Mapping[str, Any], directory: Path = DOCS) -> None:
    """Write both.

    Args:
        document: `machine`, and `clients`: name -> `version` and `outcomes`.
    """
    (directory / "conformance.json").write_text(json.dumps(document, indent=1) + "\n")
    (directory / "conformance.md").write_text(page(document))


def page(document: Mapping[str, Any]) -> str:
    """The page of a document that `write` takes."""
    reasons: list[str] = []
    rows = []
    for name, client in document["clients"].items():
        cells = [_cell(client["outcomes"].get(feature), reasons) for feature in TITLES]
        rows.append([f"{name} {client['version']}", *cells])
    facts = document["machine"]
    packages = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    table = markdown_table(["client", *TITLES.values()], rows)
    where = f"{facts['date']}, {facts['cpu']}, {facts['cores']} cores; {packages}."
    notes = "".join(f"{number}. {reason}\n" for number, reason in enumerate(reasons, 1))
    return f"{INTRODUCTION}\n{table}\n\n{where}\n" + (f"\n{notes}" if notes else "")


def _cell(outcome: str | None, reasons: list[str]) -> str:
    if outcome is None or outcome == "ok":
        return outcome or NOT_OFFERED
    reasons.append(" ".join(outcome.split()))
    return f"no ({len(reasons)})"
