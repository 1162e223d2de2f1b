"""A step has landed when the device has computed all of it."""

from __future__ import annotations

import torch

from brainstacks.engine.runner.flight import Flight
from brainstacks.engine.sampling.transfers import Mark
from brainstacks.engine.scheduler import Row
from brainstacks.errors import EngineFailure
from tests.engine.completions import completion


class Watched(Mark):
    """Notes that it was waited for."""

    waited = False

    def wait(self) -> None:
        self.waited = True


def test_a_step_that_gives_nobody_a_token_is_waited_for_all_the_same() -> None:
    """What its requests held must not be given to others before."""
    end = Watched(torch.device("cpu"))
    assert Flight(None, [Row(completion(8), 0, 4)], [], [], [], None, end).land() == []
    assert end.waited


def test_a_prompt_whose_logits_are_not_finite_fails_before_its_completion_gets_anything() -> None:
    one = completion(4, max_tokens=0)
    one.scores_prompt, one.computed = True, 4
    row, logits = Row(one, 0, 4), torch.full((4, 16), torch.nan)
    first, *_ = Flight(None, [row], [(row, logits)], [one], [], None, Mark(torch.device("cpu"))).land()
    assert isinstance(first.result, EngineFailure)
    assert first.completion is one
