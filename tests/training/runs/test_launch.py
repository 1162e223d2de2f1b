"""`training.runs.launch`: what a launcher's environment says, or the way out."""

from __future__ import annotations

import re

import pytest

from brainstacks.errors import ConfigError
from training.runs.launch import ADDRESS, NUMBERS, Launch, launched, refuse_several

TOLD = {
    "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
}  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NUMBERS, *ADDRESS):
        monkeypatch.delenv(name, raising=False)


def tell(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    for name, value in {**TOLD, **changes}.items():
        if value is not None:
            monkeypatch.setenv(name, value)


def test_who_is_started_without_a_launcher_or_as_the_only_one_is_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert launched() is None
    tell(monkeypatch, WORLD_SIZE="1", RANK="0", LOCAL_RANK="0")
    assert launched() is None
    refuse_several("add")


def test_one_of_several_knows_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch)
    assert launched() == Launch(rank=3, local_rank=1, count=4)


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_variable_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    tell(monkeypatch, **{missing: None})
    with pytest.raises(ConfigError, match=f"WORLD_SIZE is '4', and {missing} is not set; start .* torchrun"):
        launched()


@pytest.mark.parametrize(
    ("name", "value"), [("WORLD_SIZE", "two"), ("WORLD_SIZE", "0"), ("RANK", "4"), ("LOCAL_RANK", "-1")]
)
def test_numbers_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    tell(monkeypatch, **{name: value})
    with pytest.raises(ConfigError, match=re.escape(f"{name} is {value!r}")):
        launched()


def test_what_takes_one_process_is_refused_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    tell(monkeypatch)
    with pytest.raises(ConfigError, match="sign takes one process, and 4 were started; start it without"):
        refuse_several("sign")
