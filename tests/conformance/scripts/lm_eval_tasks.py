"""Two records, scored or answered by lm-eval through one of its clients of a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import requests
from datasets import Dataset
from lm_eval import simple_evaluate

from tests.conformance.scripts.questions import MODEL, TOKENS
from tests.conformance.scripts.report import expect

RECORDS = [
    {"question": "The opposite of hot is", "choices": ["cold", "a green table"]},
    {"question": "Two and two make", "choices": ["four", "a long river"]},
]
TASK: dict[str, Any] = {
    "custom_dataset": lambda **_: {"test": Dataset.from_list(RECORDS)},
    "test_split": "test",
    "doc_to_text": "{{question}}",
}
SCORED = {
    **TASK,
    "task": "scored",
    "output_type": "multiple_choice",
    "doc_to_choice": "choices",
    "doc_to_target": 0,
}
ANSWERED = {
    **TASK,
    "task": "answered",
    "output_type": "generate_until",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": TOKENS, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def evaluated(client: str, url: str, task: Mapping[str, Any], model: str = MODEL) -> list[Any]:
    """What lm-eval got for each record: a (log-likelihood, whether greedy) per choice, or a text."""
    found = simple_evaluate(
        model=client,
        model_args={"model": model, "base_url": url, "max_retries": 1},
        tasks=[dict(task)],
        apply_chat_template="chat" in client,
        bootstrap_iters=0,
    )
    return [sample["filtered_resps"] for sample in found["samples"][task["task"]]]


def refused(call: Callable[[], object]) -> None:
    """Raises AssertionError: the call was not refused as one of an unknown model."""
    try:
        call()
    except requests.HTTPError as error:
        expect(error.response is not None and error.response.status_code == 404, f"another error: {error}")
        return
    raise AssertionError("an unknown model answered")
