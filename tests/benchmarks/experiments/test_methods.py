"""A learning rate that was taken is told with what was tried beside it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.experiments import methods
from tests.benchmarks.experimenting import settings_of


def test_a_rate_that_has_none_tried_beyond_it_is_told(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, learning_rate=0.004, rates=(1.0, 0.25, 0.5))
    told = [methods._taken(settings, scale) for scale in settings.rates]
    assert told == ["0.004, the highest tried", "0.001, the lowest tried", "0.002"]
