"""lm-eval's `local-chat-completions`."""

from __future__ import annotations

from functools import partial

from tests.conformance.scripts.lm_eval_tasks import ANSWERED, evaluated, refused
from tests.conformance.scripts.questions import MODEL, UNKNOWN, URL
from tests.conformance.scripts.report import expect, report

ask = partial(evaluated, "local-chat-completions", f"{URL}/chat/completions", ANSWERED)


def plain() -> None:
    expect(all(text for (text,) in ask()), "an answer is empty")


def errors() -> None:
    refused(lambda: ask(UNKNOWN))


def routing() -> None:
    found = [ask(f"{MODEL}:{stacks}") for stacks in ("base", "ungated")]
    expect(found[0] != found[1], f"the same with and without stacks: {found[0]}")


report(plain=plain, errors=errors, routing=routing)
