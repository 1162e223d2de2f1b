"""A checkpoint gives back exactly what was put in, or is not there."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.runs.checkpoints import names, put, value_of
from training.runs.checkpoint import latest, load, prune, save

FILES = ["manifest.json", "state.json", "tensors.safetensors"]


def damage(directory: Path) -> None:
    (directory / "state.json").write_bytes((directory / "state.json").read_bytes()[:-1])


# --- what goes in comes out ----------------------------------------------------------------------


def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(4, 6, generator=generator)
    table[0, 0], table[0, 1] = math.nan, -0.0
    tensors = {
        "transposed": table.T,
        "every second": table[:, ::2],
        "its storage is shared": table[1:],
        "expanded": table[:1].expand(3, 6),
        "a parameter": nn.Parameter(table),
        "a scalar": torch.tensor(3, dtype=torch.int64),
        "none": torch.empty(0, 5),
        "bool": table > 0,
        "uint8": generator.get_state(),
        "bfloat16": table.bfloat16(),
        "float8": table.to(torch.float8_e4m3fn),
        "float64": table.double(),
    }
    save(tmp_path / "step-1", tensors, {})
    found = load(tmp_path / "step-1")
    assert found is not None
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        back = found.tensors[name]
        assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(raw(back), raw(tensor))


def raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, row-major."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def test_floats_of_the_state_come_back_bit_for_bit_and_so_do_nan_and_infinities(tmp_path: Path) -> None:
    numbers = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, math.inf, -math.inf, 2**70]
    save(
        tmp_path / "step-1", {}, {"numbers": numbers, "nan": math.nan, "text": "ä\n", "nested": {"a": [None]}}
    )
    found = load(tmp_path / "step-1")
    assert found is not None
    assert [repr(n) for n in found.state["numbers"]] == [repr(n) for n in numbers]
    assert math.isnan(found.state.pop("nan"))
    assert (found.state["text"], found.state["nested"]) == ("ä\n", {"a": [None]})


def test_what_is_loaded_can_be_written_to_and_the_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    put(tmp_path / "step-1", 1)
    found = load(tmp_path / "step-1")
    assert found is not None
    found.tensors["x"].add_(1)
    again = load(tmp_path / "step-1")
    assert again is not None
    assert again.tensors["x"].tolist() == [1] * 64


def test_the_same_content_is_the_same_bytes_whatever_the_order_of_its_names(tmp_path: Path) -> None:
    a, b = torch.ones(3), torch.zeros(2, dtype=torch.bool)
    save(tmp_path / "one", {"a": a, "b": b}, {"x": 1, "y": 2})
    save(tmp_path / "two", {"b": b, "a": a}, {"y": 2, "x": 1})
    assert names(tmp_path / "one") == FILES
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_saving_the_same_again_writes_nothing_and_saving_another_replaces_it(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "parents" / "step-1"
    put(directory, 1)
    first = directory.stat().st_ino
    put(directory, 1)
    assert directory.stat().st_ino == first
    put(directory, 2)
    assert value_of(directory) == 2
    assert names(directory.parent) == ["step-1"]


def test_a_damaged_checkpoint_is_replaced_by_the_same_one_whole(tmp_path: Path) -> None:
    put(tmp_path / "step-1", 1)
    damage(tmp_path / "step-1")
    put(tmp_path / "step-1", 1)
    assert value_of(tmp_path / "step-1") == 1


# --- what does not verify is not there -----------------------------------------------------------


def flip_a_bit(directory: Path) -> None:
    content = bytearray((directory / "tensors.safetensors").read_bytes())
    content[-1] ^= 1
    (directory / "tensors.safetensors").write_bytes(content)


def cut_the_manifest(directory: Path) -> None:
    content = (directory / "manifest.json").read_bytes()
    (directory / "manifest.json").write_bytes(content[: len(content) // 2])


def claim_another_format(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": flip_a_bit,
    "a cut file": damage,
    "a missing file": lambda d: (d / "state.json").unlink(),
    "no manifest": lambda d: (d / "manifest.json").unlink(),
    "a cut manifest": cut_the_manifest,
    "another manifest": lambda d: (d / "manifest.json").write_text("[]"),
    "no text": lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe\xff"),
    "another format": claim_another_format,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    put(tmp_path / "step-9", 9)
    put(tmp_path / "step-10", 10)
    DAMAGES[how](tmp_path / "step-10")
    found = latest(tmp_path)
    assert found is not None
    assert found.state == {"value": 9}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "step-10 is ignored" in caplog.text


def test_where_there_is_no_checkpoint_there_is_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load(tmp_path / "nowhere" / "step-1") is None
    assert latest(tmp_path / "nowhere") is None
    assert caplog.text == ""


def test_the_latest_is_the_highest_number_and_other_names_do_not_count(tmp_path: Path) -> None:
    for name, value in (("step-9", 9), ("step-000010", 10), ("step-x", 11), ("round-12", 12)):
        put(tmp_path / name, value)
    found = latest(tmp_path)
    assert found is not None
    assert found.state == {"value": 10}


def test_prune_keeps_the_newest_whole_ones_and_what_may_be_worth_a_look(tmp_path: Path) -> None:
    for step in range(1, 8):
        put(tmp_path / f"step-{step}", step)
    put(tmp_path / "round-0", 0)
    for step in (2, 5, 7):
        damage(tmp_path / f"step-{step}")
    prune(tmp_path, keep=2)
    assert names(tmp_path) == ["round-0", "step-4", "step-6", "step-7"]
    prune(tmp_path, keep=0)
    assert names(tmp_path) == ["round-0"]


def test_prune_never_removes_a_whole_one_for_damaged_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        put(tmp_path / f"step-{step}", step)
    damage(tmp_path / "step-2")
    damage(tmp_path / "step-3")
    prune(tmp_path, keep=1)
    assert names(tmp_path) == ["step-1", "step-2", "step-3"]
