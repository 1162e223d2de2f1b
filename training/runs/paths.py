"""Where a run keeps what.

RUN/run.json                       the identity: what the results depend on
RUN/lock                           held (flock) by the running process; its pid is inside
RUN/metrics.jsonl, tensorboard/    the log
RUN/<domain>/null-space/           where it must not write, or read
RUN/<domain>/checkpoints/round-<n>/step-<s>/       the round in progress
RUN/<domain>/round-<n>             finished rounds
RUN/<domain>/reinforce-<n>         finished stages of `rl:`; their checkpoints are beside those of rounds
RUN/<domain>/stack.safetensors     the finished stack; its digest is in stack.sha256
RUN/forgetting.json                losses of each domain after each domain
RUN/outcomes.jsonl, router.safetensors             what `router` makes
RUN/evaluation.json, expert_use.json, report.html  what `evaluate` and `report` make
"""

from __future__ import annotations

from pathlib import Path

from brainstacks.errors import ConfigError

LOCK, IDENTITY = "lock", "run.json"
METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
FORGETTING, OUTCOMES, ROUTER = "forgetting.json", "outcomes.jsonl", "router.safetensors"
EVALUATION, EXPERT_USE, REPORT = "evaluation.json", "expert_use.json", "report.html"

RESERVED = (
    LOCK,
    IDENTITY,
    METRICS,
    TENSORBOARD,
    FORGETTING,
    OUTCOMES,
    ROUTER,
    EVALUATION,
    EXPERT_USE,
    REPORT,
)
"""What the run keeps beside its domains: no domain has such a name."""


class RunPaths:
    """The names in the run's directory `path`; nothing of it need exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def domain(self, name: str) -> Path:
        """Raises ConfigError: `name` is that of a file or directory of the run itself."""
        if name in RESERVED:
            raise ConfigError(f"the run keeps something else under {name!r}; give the domain another name")
        return self.path / name

    def checkpoints(self, domain: str) -> Path:
        return self.domain(domain) / "checkpoints"

    def round(self, domain: str, number: int) -> Path:
        return self.domain(domain) / f"round-{number}"

    def stage(self, domain: str, number: int) -> Path:
        return self.domain(domain) / f"reinforce-{number}"

    def stack(self, domain: str) -> Path:
        return self.domain(domain) / "stack.safetensors"

    def stack_digest(self, domain: str) -> Path:
        return self.domain(domain) / "stack.sha256"

    @property
    def identity(self) -> Path:
        return self.path / IDENTITY

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def forgetting(self) -> Path:
        return self.path / FORGETTING

    @property
    def outcomes(self) -> Path:
        return self.path / OUTCOMES

    @property
    def router(self) -> Path:
        return self.path / ROUTER

    @property
    def evaluation(self) -> Path:
        return self.path / EVALUATION

    @property
    def expert_use(self) -> Path:
        return self.path / EXPERT_USE

    @property
    def report(self) -> Path:
        return self.path / REPORT
