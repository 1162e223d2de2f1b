"""Train one round of one domain: best snapshot, spike and plateau rules (paper, section 3.3)."""

from __future__ import annotations

import time
from pathlib import Path

from training.rounds.task import RoundResult, RoundTask
from training.rounds.training import RoundTraining
from training.rounds.workshop import Workshop
from training.runs import checkpoint
from training.runs.signals import Interrupted


def train_round(workshop: Workshop, task: RoundTask, checkpoints: Path, log_start: int = 0) -> RoundResult:
    """Train a round on top of what is frozen, from the latest checkpoint or from the start.

    The best starts at the zero-delta baseline and NaN loses every comparison, so a round that never
    helps, or that diverges, leaves nothing to freeze.

    Args:
        checkpoints: directory of this round's checkpoints.
        log_start: where the round's lines begin in the log (bytes), for a start without a checkpoint.

    Raises:
        Interrupted: a stop was asked for; the checkpoint is written.
        StorageFull: a checkpoint could not be written; those before it are whole.
    """
    training = RoundTraining(workshop, task)
    carry_out(training, checkpoints, log_start)
    return training.result()


def carry_out(training: RoundTraining, checkpoints: Path, log_start: int = 0) -> None:
    """Bring `training` to its end. Arguments and errors are those of `train_round`."""
    workshop, task = training.workshop, training.task
    found = workshop.processes.first(lambda: checkpoint.latest(checkpoints))
    if found is None:
        workshop.log.rewind(log_start)
        training.begin()
    else:
        training.resume(found)
    with workshop.log.progress(task.title, task.config.steps, training.state.step) as bar:
        while training.state.stopped is None:
            started = time.monotonic()
            loss, tokens = training.step()
            training.log_step(loss, tokens, time.monotonic() - started)
            bar.advance(loss=loss, tokens=tokens)
            if training.evaluation_due:
                training.evaluate()
            if training.checkpoint_due or training.stop_asked:
                training.save(checkpoints)
            if training.stop_asked:
                raise Interrupted(f"stopped at step {training.state.step} of {task.title}")
