"""Fixtures of the trainer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.curricula import write_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Of the three domains of a tiny curriculum."""
    return write_data(tmp_path / "data")
