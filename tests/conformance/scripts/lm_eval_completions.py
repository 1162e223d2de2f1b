"""lm-eval's `local-completions`: log-likelihoods and answers, over the server's own tokenizer."""

from __future__ import annotations

from functools import partial

from tests.conformance.scripts.lm_eval_tasks import ANSWERED, SCORED, evaluated, refused
from tests.conformance.scripts.questions import MODEL, UNKNOWN, URL
from tests.conformance.scripts.report import expect, report

ask = partial(evaluated, "local-completions", f"{URL}/completions")


def plain() -> None:
    expect(all(text for (text,) in ask(ANSWERED)), "an answer is empty")


def logprobs() -> None:
    for (right, _), (wrong, _) in ask(SCORED):
        expect(wrong < right < 0, f"log-likelihoods of the right and the wrong choice: {right}, {wrong}")


def errors() -> None:
    refused(lambda: ask(ANSWERED, UNKNOWN))


def routing() -> None:
    found = [ask(SCORED, f"{MODEL}:{stacks}") for stacks in ("base", "ungated")]
    expect(found[0] != found[1], f"the same with and without stacks: {found[0]}")


report(plain=plain, logprobs=logprobs, errors=errors, routing=routing)
