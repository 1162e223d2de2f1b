"""How long prompts and answers are: those of the demo's validation records, counted once.

python -m benchmarks.scaling.lengths --data DIR
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.instruments import options
from benchmarks.instruments.timing import say
from benchmarks.scaling.requests import Lengths
from brainstacks.base_files import base_name
from training.data.domains import prepare
from training.data.encoding import encode
from training.recipe.recipe import load_recipe

FILE = Path(__file__).with_suffix(".json")
MAX_TOKENS = 1024
"""Of prompt and answer."""


def lengths(file: Path = FILE) -> Lengths:
    """(prompt tokens, answer tokens) of each record."""
    return [(prompt, answer) for prompt, answer in json.loads(file.read_text(encoding="utf-8"))["records"]]


def main(
    data: Annotated[
        Path, typer.Option(help="Records: <domain>/{train,validation}.jsonl.", exists=True, file_okay=False)
    ],
    recipe: Annotated[str, typer.Option(help="Whose domains are counted.")] = "demo",
    base: options.Base = options.DEFAULT_BASE,
    output: Annotated[Path, typer.Option(help="File of the counts.")] = FILE,
) -> None:
    """Count the tokens of validation records, for `python -m benchmarks.scaling`.

    A quick look: python -m benchmarks.scaling.lengths --data DIR --output lengths.json
    """
    plan = load_recipe(recipe)
    tokenizer = options.load(base, None, "cpu").chat_tokenizer()
    found = []
    for records in prepare(plan, data, plan.domains).values():
        found += encode(records.validation, tokenizer, MAX_TOKENS)
    document = {
        "what": f"(prompt, answer) tokens of the validation records of the recipe {Path(recipe).stem}",
        "tokenizer": base_name(base),
        "records": [[len(one.prompt), len(one.response)] for one in found],
    }
    output.write_text(json.dumps(document) + "\n", encoding="utf-8")
    say(f"{len(found)} records; written: {output.name}")


app = options.application(main)

if __name__ == "__main__":
    app()
