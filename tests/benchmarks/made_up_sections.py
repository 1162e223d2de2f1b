"""Sections that end in every way; in a module of their own, which a new process imports in little time."""

from __future__ import annotations

import os
import time

from benchmarks.gpu_sections.findings import Findings
from benchmarks.gpu_sections.setting import Setting


def hangs(setting: Setting, found: Findings) -> None:
    found.figure("before", 1)
    time.sleep(600)


def crashes(setting: Setting, found: Findings) -> None:
    found.figure("before", 2)
    os._exit(77)


def works(setting: Setting, found: Findings) -> None:
    found.figure("all", 3)
