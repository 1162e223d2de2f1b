"""What tests of the sandbox need of the system."""

from __future__ import annotations

import pytest

from brainstacks.errors import ConfigError
from tests.training.reinforce.sandboxes import SANDBOX


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips where the system lets no process shut itself in."""
    try:
        SANDBOX.check()
    except ConfigError as error:
        pytest.skip(error.message)
