"""`training.runs.paths`: every artefact has its place, and no domain takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainstacks.errors import ConfigError
from training.runs.paths import RESERVED, RunPaths

RUN = RunPaths(Path("run"))
FILES = [
    RUN.identity,
    RUN.metrics,
    RUN.forgetting,
    RUN.outcomes,
    RUN.router,
    RUN.evaluation,
    RUN.expert_use,
    RUN.report,
]


def test_every_artefact_has_its_place() -> None:
    places = [*FILES, RUN.domain("math"), RUN.checkpoints("math"), RUN.round("math", 2), RUN.stack("math")]
    assert [place.relative_to(RUN.path).as_posix() for place in places] == [
        "run.json",
        "metrics.jsonl",
        "forgetting.json",
        "outcomes.jsonl",
        "router.safetensors",
        "evaluation.json",
        "expert_use.json",
        "report.html",
        "math",
        "math/checkpoints",
        "math/round-2",
        "math/stack.safetensors",
    ]


@pytest.mark.parametrize("name", ["lock", "tensorboard", *(path.name for path in FILES)])
def test_a_domain_named_as_a_part_of_the_run_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="another name"):
        RUN.stack(name)


def test_nothing_else_is_refused() -> None:
    assert set(RESERVED) == {"lock", "tensorboard", *(path.name for path in FILES)}
