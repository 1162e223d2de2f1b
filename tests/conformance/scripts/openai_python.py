"""`openai` for Python."""

from __future__ import annotations

from tests.conformance.scripts.openai_checks import OpenAIChecks
from tests.conformance.scripts.questions import URL

OpenAIChecks(URL).report()
