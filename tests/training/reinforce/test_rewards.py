"""Rewards: the number that an answer gives, and the code that is in it."""

from __future__ import annotations

import pytest

from brainstacks.errors import ConfigError
from tests.training.examples import record
from training.reinforce.rewards import REWARDS, SANDBOX, code_of, exact_answer, python_tests


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("17 * 3 = 51. The answer is 51.", True),
        ("17 * 3 = 51\n#### 51", True),
        ("It is 51", True),
        ("The answer is $51.00", True),
        ("The answer is 51. That is 3 times 17.", True),
        ("51, or 52", False),
        ("The answer is 5.1", False),
        ("The answer is -51", False),
        ("The answer is fifty-one.", False),
        ("", False),
        ("The answer is **51**, since 3 * 17 is 51 and 3 * 18 is 54.", True),
        ("the Answer is:\n$\\boxed{51}$. Check: 51 / 3 = 17", True),
        (r"The answer is \(51\), not 52", True),
        ("The answer is 51/2", False),
        ("The answer is −51", False),
    ],
)
def test_the_number_that_is_said_to_be_the_answer_counts_else_the_last(answer: str, right: bool) -> None:
    assert exact_answer(answer, "51") == float(right)


@pytest.mark.parametrize(
    ("answer", "expected"), [("−7", "-7"), ("The answer is 1/2.", "0.5"), ("1/2", "1/2"), (".5", "0.50")]
)
def test_numbers_are_the_same_however_they_are_written(answer: str, expected: str) -> None:
    assert exact_answer(answer, expected) == 1.0
    assert exact_answer(answer, "2") == 0.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [(7, "7"), (-0.5, "-0.5"), (1e-7, "0.0000001"), ("$1,051", "$1,051"), ("4 + 3\n#### 7", "7")],
)
def test_what_a_row_asks_for_is_a_number_or_text_that_says_which(value: object, expected: str) -> None:
    assert REWARDS["exact_answer"].given(value) == expected


@pytest.mark.parametrize("value", ["a word, no number", "7 or 8", "", None, True, [7], float("nan")])
def test_a_row_that_asks_for_no_number_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"'answer' is .*; it is a number, or text that says"):
        REWARDS["exact_answer"].given(value)


def test_a_row_without_tests_is_refused() -> None:
    assert REWARDS["python_tests"].given("assert f()") == "assert f()"
    for value in (" ", None, 7):
        with pytest.raises(ConfigError, match=r"'tests' is .*; it is Python code"):
            REWARDS["python_tests"].given(value)


def test_thousands_may_have_commas() -> None:
    assert exact_answer("The answer is 1,051", "1051") == 1.0
    assert exact_answer("1051", "1,051.0") == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "Here it is:\n```python\nx = 1\n```\nDone.",
        "```py\nx = 1\n```",
        "```\nx = 1\n```",
        "```python\nx = 1",
        "```python3 title=a.py\nx = 1\n```\nSo x is 1.",
        "```Python\r\nx = 1\r\n```\r\nDone.",
        "```bash\npython a.py\n```\nwhere a.py is\n```python\nx = 1\n```",
        "Not ```this```, but\n``` py\nx = 1\n```\n```\ny = 2\n```",
        "x = 1",
    ],
)
def test_code_is_the_first_block_of_python_with_or_without_an_end_or_all_of_the_answer(answer: str) -> None:
    assert code_of(answer) == "x = 1"


def test_code_that_passes_its_tests_is_rewarded_and_no_other() -> None:
    if (problem := SANDBOX.problem()) is not None:
        pytest.skip(problem)
    tests = "assert add(1, 2) == 3"
    assert python_tests("```python\ndef add(a, b):\n    return a + b\n```", tests) == 1.0
    assert python_tests("```python\ndef add(a, b):\n    return a - b\n```", tests) == 0.0
    assert python_tests("I do not know.", tests) == 0.0
    assert python_tests("```python\nexit()\n```", tests) == 0.0


def test_of_a_domains_own_records_those_that_hold_what_is_asked_for_are_taken() -> None:
    exact, tests = REWARDS["exact_answer"], REWARDS["python_tests"]
    assert exact.expected(record("2 + 2?", "2 + 2 = 4\n#### 4")) == "4"
    assert exact.expected(record("2 + 2?", "So it is 5. The answer is 4.")) == "4"
    assert exact.expected(record("2 + 2?", "4")) == "4"
    assert exact.expected(record("2 + 2?", "It is 4")) is None, "which number is the answer, nobody says"
    asked = "Add.\nYour code should pass this test:\nassert add(1, 2) == 3"
    assert tests.expected(record(asked, "x")) == "assert add(1, 2) == 3"
    assert tests.expected(record("Add.", "x")) is None
