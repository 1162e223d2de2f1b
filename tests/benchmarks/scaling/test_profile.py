"""A replica's constants come from files that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.instruments.results import RESULTS
from benchmarks.scaling.profile import BUCKET, DISK, PROFILES, Case, fit, load_profile
from brainstacks.errors import ConfigError


@pytest.mark.parametrize("name", PROFILES)
def test_each_constant_names_its_file_and_the_fit_is_close(name: str) -> None:
    profile = load_profile(name)
    for file in profile.files.values():
        assert (RESULTS / file).is_file()
    assert min(profile.step, profile.row, profile.stack, profile.pair, profile.token, profile.token_stack) > 0
    assert max(map(abs, profile.off)) < 0.1
    assert profile.loads["host"] < profile.loads[DISK] < profile.loads[BUCKET]


def test_the_fit_finds_the_constants_that_made_the_cases() -> None:
    truth = (0.004, 0.001, 0.0009, 0.0002)
    cases = [
        Case(rows, stacks, pairs, sum(a * b for a, b in zip(truth, (1, rows, stacks, pairs), strict=True)))
        for rows, stacks, pairs in ((1, 0, 0), (16, 0, 0), (1, 4, 4), (16, 4, 64), (16, 10, 64))
    ]
    found, off = fit(cases)
    assert found == pytest.approx(truth)
    assert max(map(abs, off)) < 1e-9


def test_what_is_unknown_or_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'r17' with stacks from 'disk' is no profile"):
        load_profile("r17")
    with pytest.raises(ConfigError, match=r"decode-.*is not there; run python -m benchmarks.decode first"):
        load_profile("r16", directory=tmp_path)
