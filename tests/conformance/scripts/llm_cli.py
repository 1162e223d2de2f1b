"""`llm`: the command line, with the server in its `extra-openai-models.yaml`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.conformance.scripts.person import Person
from tests.conformance.scripts.questions import (
    CALL_TOKENS,
    FOLLOW_UP,
    KEY,
    MODEL,
    PRODUCT,
    QUESTION,
    RECORD,
    TOKENS,
    UNKNOWN,
    URL,
)
from tests.conformance.scripts.report import expect, report

PROGRAM = Path(sys.executable).parent / "llm"
MULTIPLY = '''
def multiply(a: int, b: int) -> str:
    """Multiply two whole numbers."""
    return f"Done. The product of {a} and {b} is {a * b}, tell me so in a sentence."
'''
SHOWN = f"""What is 2 * 5?
{{"name": "multiply", "arguments": {{"a": 2, "b": 5}}}}
What is 7 * 4?
{{"name": "multiply", "arguments": {{"a": 7, "b": 4}}}}
{PRODUCT}"""
"""There is no way to require a call; small bases make one that they were shown."""


def configured(name: str) -> dict[str, Any]:
    return {
        "model_id": name,
        "model_name": name,
        "api_base": URL,
        "api_key_name": "ours",
        "supports_schema": True,
        "supports_tools": True,
    }


def run(*arguments: str, model: str = MODEL, tokens: int = TOKENS) -> str:
    """What it prints. Raises RuntimeError: it failed."""
    options = ["-m", model, "-o", "temperature", "0", "-o", "max_tokens", str(tokens), "--key", KEY]
    ran = subprocess.run([PROGRAM, "prompt", *options, *arguments], capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(ran.stderr.strip())
    return ran.stdout.strip()


def plain() -> None:
    expect(run(QUESTION, "--no-stream"), "the answer is empty")


def streaming() -> None:
    expect(run(QUESTION) == run(QUESTION, "--no-stream"), "streamed, it is another answer")


def multi_turn() -> None:
    run(QUESTION)
    expect(run(FOLLOW_UP, "--continue"), "the answer is empty")


def structured() -> None:
    schema = json.dumps(Person.model_json_schema())
    Person.model_validate_json(run(RECORD, "--schema", schema, tokens=CALL_TOKENS))


def tools() -> None:
    for how in ([], ["--no-stream"]):
        answer = run(SHOWN, *how, "--functions", MULTIPLY, tokens=CALL_TOKENS)
        expect("51" in answer, f"no answer from the function's result: {answer}")


def errors() -> None:
    try:
        run(QUESTION, model=UNKNOWN)
    except RuntimeError as error:
        expect("404" in str(error), f"another error: {error}")
        return
    raise AssertionError("an unknown model answered")


def routing() -> None:
    answers = {run(QUESTION, model=f"{MODEL}:{stacks}") for stacks in ("base", "ungated")}
    expect(len(answers) == 2, f"the same answer with and without stacks: {answers}")


with tempfile.TemporaryDirectory() as folder:
    os.environ["LLM_USER_PATH"] = folder
    names = [MODEL, f"{MODEL}:base", f"{MODEL}:ungated", UNKNOWN]
    models = Path(folder) / "extra-openai-models.yaml"
    models.write_text(json.dumps([configured(name) for name in names]))  # JSON is YAML
    report(
        plain=plain,
        streaming=streaming,
        multi_turn=multi_turn,
        structured=structured,
        tools=tools,
        errors=errors,
        routing=routing,
    )
