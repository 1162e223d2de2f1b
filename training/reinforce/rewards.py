"""Rewards that are verified: the right number, or code that passes its tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from training.data.records import Record
from training.recipe.reinforcement import RewardName
from training.reinforce.sandbox import Sandbox

SANDBOX = Sandbox()

_NUMBER = r"-?\$?\d[\d,]*(?:\.\d+)?"
_ANSWER = re.compile(rf"(?:####|[Tt]he answer is:?)\s*({_NUMBER})")
_ANY = re.compile(_NUMBER)
_CODE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
_TEST = "Your code should pass this test:\n"


@dataclass(frozen=True)
class Reward:
    """A reward.

    Attributes:
        column: of a data file, what it asks for.
        own: what a domain's own records need, in words: "records ...".
        expected: of such a record; None where it has none.
        score: (answer, what is asked for) -> 0.0 to 1.0.
        check: raises ConfigError where it cannot be told here.
    """

    column: str
    own: str
    expected: Callable[[Record], str | None]
    score: Callable[[str, str], float]
    check: Callable[[], None] = lambda: None


def number_of(answer: str) -> Decimal | None:
    """The number that `answer` says is its answer ("The answer is 7", "#### 7"), else the last in it."""
    found = _ANSWER.findall(answer) or _ANY.findall(answer)
    return Decimal(found[-1].replace(",", "").replace("$", "")) if found else None


def exact_answer(answer: str, expected: str) -> float:
    """1.0 where the two have the same number."""
    found = number_of(answer)
    return float(found is not None and found == number_of(expected))


def code_of(answer: str) -> str:
    """The first fenced block of `answer`, which may lack its end; all of it where there is none."""
    found = _CODE.search(answer)
    return found[1] if found else answer


def python_tests(answer: str, tests: str) -> float:
    """1.0 where the code of `answer` passes `tests`. Raises ConfigError: the sandbox cannot run it."""
    return float(SANDBOX.passes(code_of(answer), tests))


def _marked(record: Record) -> str | None:
    found = _ANSWER.findall(record.response)
    return found[-1] if found else None


def _tests(record: Record) -> str | None:
    return record.messages[-1].content.partition(_TEST)[2] or None


REWARDS: Mapping[RewardName, Reward] = {
    "exact_answer": Reward(
        "answer", 'records whose response says "The answer is N" or "#### N"', _marked, exact_answer
    ),
    "python_tests": Reward(
        "tests",
        f'records whose prompt ends with "{_TEST.strip()}" and it',
        _tests,
        python_tests,
        SANDBOX.check,
    ),
}
"""By the name that a recipe has."""
