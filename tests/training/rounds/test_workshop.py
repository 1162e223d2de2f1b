"""What processes agree on, and how many values are read for it."""

from __future__ import annotations

import torch

from brainstacks.base_model import BaseModel
from tests.training.workshop import workshop_of


def test_tensors_and_numbers_are_summed_and_read_together(tiny_base: BaseModel) -> None:
    workshop = workshop_of(tiny_base)
    total = torch.tensor(1.1, dtype=torch.float64)
    assert workshop.summed(total, True, 2.5) == [1.1, 1.0, 2.5]
    assert workshop.summed(False) == [0.0]
    assert workshop.of_first(0.1) == 0.1
