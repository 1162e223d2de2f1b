"""What the CPU can do is found, named and can be hidden."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from brainstacks.cpu import NOTED, VARIABLE, Cpu, cpu, hide_features
from brainstacks.errors import ConfigError

SEEN = """
from brainstacks.cpu import cpu
import torch
print(cpu())
print(torch.backends.cpu.get_cpu_capability())
"""


def seen(**environment: str) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", SEEN],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.splitlines()


def test_only_features_that_decide_something_are_named() -> None:
    assert set(cpu().features) <= set(NOTED)
    assert cpu().has()
    assert not cpu().has("a feature that no CPU has")


def test_hidden_features_are_used_by_nobody_and_this_is_said() -> None:
    ours, torch = seen(**{VARIABLE: "generic"})
    assert ours.endswith(f"(no vector extension of note, {VARIABLE}=generic)")
    assert torch == "DEFAULT"


@pytest.mark.skipif(not cpu().has("avx2"), reason="this CPU has no AVX2")
def test_avx2_alone_can_be_had_of_a_cpu_that_has_more() -> None:
    ours, torch = seen(**{VARIABLE: "avx2"})
    assert "avx2" in ours
    assert "avx512" not in ours
    assert torch == "AVX2"


def test_an_unknown_value_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'sse9'; it is avx2, generic"):
        hide_features({VARIABLE: "sse9"})


def test_without_the_variable_nothing_is_set() -> None:
    environment: dict[str, str] = {}
    hide_features(environment)
    assert environment == {}


def test_it_reads_as_one_line() -> None:
    assert str(Cpu("a CPU", ("avx2", "fma"), "")) == "a CPU (avx2 fma)"
