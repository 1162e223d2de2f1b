"""Values go to the device and back in one copy each, exact, and from memory for which nothing has to wait."""

from __future__ import annotations

import math

import pytest
import torch

from brainstacks.engine.sampling.transfers import HostCopy, select, to_device
from tests.fake_tensors import DEVICE, fake_cuda


def test_columns_arrive_whole_in_order_and_exact() -> None:
    columns: list[list[float]] = [[1e-300, math.inf], [2**53 - 1], [], [7, 8, 9]]
    found = to_device(columns, torch.device("cpu"))
    assert [column.tolist() for column in found] == columns
    assert {column.dtype for column in found} == {torch.float64}


@pytest.mark.parametrize("indices", [[0, 1, 2], [2, 0], [1, 1, 0], [0, 0, 0], []])
def test_rows_are_selected_by_their_indices(indices: list[int]) -> None:
    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(select(rows, indices), rows[indices])


def test_all_rows_in_order_are_no_copy() -> None:
    rows = torch.arange(6.0).reshape(3, 2)
    assert select(rows, [0, 1, 2]) is rows


def test_a_host_copy_has_the_values() -> None:
    assert HostCopy(torch.arange(3)).wait().tolist() == [0, 1, 2]


@pytest.mark.static_cuda
def test_a_copy_to_cuda_comes_from_pinned_memory_and_nothing_waits_for_either_way() -> None:
    with fake_cuda() as operators:
        (first, _) = to_device([[1.0], [2.0, 3.0]], DEVICE)
        HostCopy(first).wait()
    assert first.device == DEVICE
    assert (operators.to_device, operators.pinned, operators.to_host) == (1, 1, 1)
    assert operators.waiting == []
