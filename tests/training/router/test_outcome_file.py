"""What a kill leaves of the file is used, and a loss while all the stacks of its combination are the same."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from brainstacks.errors import ConfigError, StorageFull
from tests.training.examples import example
from training.router.outcome_file import OutcomeFile

SETTINGS = {"base": "f" * 64, "levels": [1.0, 0.5]}
OLD = {"a": "1" * 64, "b": "2" * 64}
ONE, TWO = example([1, 2], [3], "one"), example([4], [5, 6], "two")
LOSSES = {"": 3.0, "a": 2.0, "b": 2.5, "a+b": 1.5}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with both examples."""
    found = tmp_path / "run" / "outcomes.jsonl"
    file = OutcomeFile(found, SETTINGS, OLD)
    file.append([("math", ONE, LOSSES, {"a": 1.0, "b": 0.5}, 1.25)])
    file.append([("math", TWO, LOSSES, {"a": 0.0, "b": 1.0}, 2.5)])
    return found


def test_what_was_appended_is_found_again(path: Path) -> None:
    file = OutcomeFile(path, SETTINGS, OLD)
    assert file.losses("math", ONE) == LOSSES
    assert file.best("math", ONE) == ({"a": 1.0, "b": 0.5}, 1.25)
    assert file.best("math", TWO) == ({"a": 0.0, "b": 1.0}, 2.5)


def test_another_domain_leaves_all_losses_but_asks_for_a_new_search(path: Path) -> None:
    file = OutcomeFile(path, SETTINGS, {**OLD, "c": "3" * 64})
    assert file.losses("math", ONE) == LOSSES
    assert file.best("math", ONE) is None


def test_another_stack_of_a_domain_leaves_the_combinations_without_it(path: Path) -> None:
    file = OutcomeFile(path, SETTINGS, {**OLD, "b": "9" * 64})
    assert file.losses("math", ONE) == {"": 3.0, "a": 2.0}
    assert file.best("math", ONE) is None


def test_lines_of_several_sets_of_stacks_add_up_and_the_later_counts(path: Path) -> None:
    newer = {**OLD, "b": "9" * 64}
    fresh = {"": 3.0, "a": 2.0, "b": 2.25, "a+b": 1.0}
    OutcomeFile(path, SETTINGS, newer).append([("math", ONE, fresh, {"a": 1.0, "b": 1.0}, 1.0)])
    assert OutcomeFile(path, SETTINGS, newer).losses("math", ONE) == fresh
    assert OutcomeFile(path, SETTINGS, newer).best("math", ONE) == ({"a": 1.0, "b": 1.0}, 1.0)
    assert OutcomeFile(path, SETTINGS, OLD).losses("math", ONE) == LOSSES, "back to the stacks of before"


def test_another_order_of_the_domains_names_the_same_combinations(path: Path) -> None:
    file = OutcomeFile(path, SETTINGS, dict(reversed(OLD.items())))
    assert file.losses("math", ONE) == {"": 3.0, "a": 2.0, "b": 2.5, "b+a": 1.5}
    weights, _ = file.best("math", ONE) or ({}, 0.0)
    assert list(weights.items()) == [("b", 0.5), ("a", 1.0)]


def test_an_id_that_names_another_text_now_is_not_known(path: Path) -> None:
    file = OutcomeFile(path, SETTINGS, OLD)
    assert file.losses("math", example([1, 2], [4], "one")) == {}
    assert file.best("math", example([1, 3], [3], "one")) is None
    assert file.best("code", ONE) is None


def test_a_kill_at_any_byte_loses_the_cut_line_alone(path: Path) -> None:
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    first = whole.index(b"\n", header) + 1
    for cut in (*range(0, len(whole), 9), header - 1, header, header + 1, first - 1, first, first + 1):
        path.write_bytes(whole[:cut])
        file = OutcomeFile(path, SETTINGS, OLD)
        assert (file.best("math", ONE) is None) == (cut < first), cut
        assert file.best("math", TWO) is None, cut
        file.append([("math", TWO, LOSSES, {"a": 0.0, "b": 1.0}, 2.5)])
        again = OutcomeFile(path, SETTINGS, OLD)
        assert again.best("math", TWO) == ({"a": 0.0, "b": 1.0}, 2.5), cut
        assert (again.best("math", ONE) is None) == (cut < first), cut


def test_a_full_disk_loses_the_new_lines_alone(path: Path) -> None:
    before = path.stat().st_size
    file = OutcomeFile(path, SETTINGS, OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (before + 20, hard))
    try:
        with pytest.raises(StorageFull, match=r"no room to write outcomes\.jsonl \(File too large\)"):
            file.append([("code", ONE, LOSSES, {"a": 1.0, "b": 0.5}, 1.25)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = OutcomeFile(path, SETTINGS, OLD)
    assert path.stat().st_size == before
    assert again.best("math", ONE) == ({"a": 1.0, "b": 0.5}, 1.25)
    assert again.best("code", ONE) is None


def test_other_settings_are_refused_by_name(path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"outcomes\.jsonl was measured with another value of levels; remove"
    ):
        OutcomeFile(path, {**SETTINGS, "levels": [1.0]}, OLD)
    with pytest.raises(ConfigError, match="base, searches"):
        OutcomeFile(path, {**SETTINGS, "base": "0" * 64, "searches": 2}, OLD)


def test_a_damaged_line_is_refused_by_number(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2]]) + "\n")
    with pytest.raises(ConfigError, match=r"outcomes\.jsonl, line 2"):
        OutcomeFile(path, SETTINGS, OLD)
