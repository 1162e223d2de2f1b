"""Rewards that are verified: the right number, or code that passes its tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from brainstacks.errors import ConfigError
from training.data.records import Record
from training.recipe.fields import shown
from training.recipe.reinforcement import RewardName
from training.reinforce.sandbox import Sandbox

SANDBOX = Sandbox()

_NUMBER = r"[-−]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/0*[1-9]\d*)?"
_SAID = re.compile(
    rf"(?:####|the answer is)(?:[*_:`$\s]|\\boxed\{{|\\[(\[])*({_NUMBER})",  # in Markdown or LaTeX, too
    re.IGNORECASE,
)
_ANY = re.compile(_NUMBER)
_BLOCK = re.compile(r"^```[ \t]*(\S*)[^\n]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)
_TEST = "Your code should pass this test:\n"


@dataclass(frozen=True)
class Reward:
    """A reward.

    Attributes:
        column: of a data file, what it asks for.
        own: what a domain's own records need, in words: "records ...".
        expected: of such a record; None where it has none.
        score: (answer, what is asked for) -> 0.0 to 1.0.
        given: of a value in `column`; raises ConfigError where it is none.
        check: raises ConfigError where it cannot be told here.
    """

    column: str
    own: str
    expected: Callable[[Record], str | None]
    score: Callable[[str, str], float]
    given: Callable[[object], str] = str
    check: Callable[[], None] = lambda: None


def number_of(answer: str) -> Fraction | None:
    """The number that `answer` says is its answer ("The answer is 7", "#### 7"), else the last in it."""
    found = _SAID.findall(answer) or _ANY.findall(answer)
    if not found:
        return None
    above, _, below = found[-1].replace(",", "").replace("$", "").replace("−", "-").partition("/")
    return Fraction(Decimal(above)) / Fraction(Decimal(below or 1))


def exact_answer(answer: str, expected: str) -> float:
    """1.0 where the two have the same number."""
    found = number_of(answer)
    return float(found is not None and found == number_of(expected))


def code_of(answer: str) -> str:
    """The first fenced block of `answer` that says it is Python, or nothing of itself; the last may lack its
    end. All of `answer` where there is none."""
    blocks = ((tag.lower(), code.rstrip()) for tag, code in _BLOCK.findall(answer))
    return next((code for tag, code in blocks if not tag or tag.startswith("py")), answer)


def python_tests(answer: str, tests: str) -> float:
    """1.0 where the code of `answer` passes `tests`. Raises ConfigError: the sandbox cannot run it."""
    return float(SANDBOX.passes(code_of(answer), tests))


def _number_in(text: str) -> str | None:
    """All of `text` where that is a number, else the one that it says is its answer."""
    said = _SAID.findall(text)
    return text if _ANY.fullmatch(text.strip()) else said[-1] if said else None


def _given_number(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = f"{Decimal(str(value)):f}" if number else value  # without an exponent
    found = _number_in(text) if isinstance(text, str) else None
    if found is None:
        raise ConfigError(
            f'\'answer\' is {shown(value)}; it is a number, or text that says "The answer is N" or "#### N"'
        )
    return found


def _given_tests(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"'tests' is {shown(value)}; it is Python code that fails where an answer is wrong")
    return value


def _tests(record: Record) -> str | None:
    return record.messages[-1].content.partition(_TEST)[2] or None


REWARDS: Mapping[RewardName, Reward] = {
    "exact_answer": Reward(
        "answer",
        'records whose response is a number, or says "The answer is N" or "#### N"',
        lambda record: _number_in(record.response),
        exact_answer,
        _given_number,
    ),
    "python_tests": Reward(
        "tests",
        f'records whose prompt ends with "{_TEST.strip()}" and it',
        _tests,
        python_tests,
        _given_tests,
        SANDBOX.check,
    ),
}
"""By the name that a recipe has."""
