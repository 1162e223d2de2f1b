"""A loss is measured once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.adapter_routers.kept_losses import KeptLosses
from training.data.encoding import Example
from training.router.stacked_base import StackedBase


def test_what_is_kept_is_not_measured_again_whatever_a_kill_left(
    stacked: StackedBase, examples: list[Example], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "losses.jsonl"
    weights = [{"art": 1.0}, {"art": 1.0, "zoology": 0.0}, {"art": 0.5}]
    found = KeptLosses(path, {"base": 1}).under(stacked, examples, weights)
    assert found == pytest.approx(stacked.losses(examples, weights))
    path.write_bytes(path.read_bytes() + b'["half a li')
    again = KeptLosses(path, {"base": 1})
    measured: list[int] = []
    losses = StackedBase.losses

    def counting(self: StackedBase, some: list[Example], *others: object) -> list[float]:
        measured.append(len(some))
        return losses(self, some, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(StackedBase, "losses", counting)
    assert again.under(stacked, examples[1:2], [{"art": 1.0}]) == found[1:2]
    assert not measured
    again.under(stacked, [examples[0]] * 3, [{}, {}, {"art": 1.0}])
    assert measured == [1], "of two equal rows one"
    KeptLosses(path, {"base": 2}).under(stacked, examples, weights)
    assert measured == [1, 3], "nothing is known of another base"
