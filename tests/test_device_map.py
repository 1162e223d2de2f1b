"""Which devices a map names, and how many layers each gets; GPUs are made up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from brainstacks import device_map
from brainstacks.base_model import load_base
from brainstacks.device_map import resolve_devices, spread
from brainstacks.errors import ConfigError
from tests.fake_cuda import FakeCuda

CPU = torch.device("cpu")
FIRST, SECOND, THIRD = (torch.device("cuda", number) for number in range(3))


def free(monkeypatch: pytest.MonkeyPatch, **devices: int) -> None:
    monkeypatch.setattr(device_map, "free_bytes", lambda device: devices[str(device).replace(":", "")])


@pytest.mark.parametrize(
    "name", ["cuda:1", "cpu", "cuda,cuda", "cuda:0,cpu", "cuda:0, cuda:1", "cuda:0,", "auto,auto", "balanced"]
)
def test_what_is_no_map_is_refused_with_what_is(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device_map is '{name}'; it is auto, or several.*cuda:0,cuda:1"):
        resolve_devices("auto", name)


def test_auto_is_every_gpu_and_a_list_is_in_the_order_of_the_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, count=3)
    assert resolve_devices("auto", "auto") == (FIRST, SECOND, THIRD)
    assert resolve_devices("auto", "cuda:2,cuda:0") == (THIRD, FIRST)
    assert resolve_devices("auto", "cpu,cpu") == (CPU, CPU)
    assert resolve_devices("cuda:1", None) == (SECOND,)


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, count=2)
    with pytest.raises(ConfigError, match="cuda:2, and CUDA devices here: 2"):
        resolve_devices("auto", "cuda:0,cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device_map is auto, every GPU, and no CUDA device.*leave it out"):
        resolve_devices("auto", "auto")


def test_a_map_and_a_device_are_refused_together() -> None:
    with pytest.raises(
        ConfigError, match="device is cpu, and device_map cpu,cpu names devices too; leave one"
    ):
        resolve_devices("cpu", "cpu,cpu")


@pytest.mark.parametrize(
    ("first", "second", "ends", "counts"),
    [
        (100, 100, 0, (5, 5)),
        (300, 100, 0, (8, 2)),  # 300 / 8 and 100 / 2; 7 and 3 would leave 33 for each of the second's
        (100, 100, 50, (3, 7)),
        (100, 100, 1000, (1, 9)),
    ],
)
def test_layers_go_where_each_of_them_has_the_most_room(
    monkeypatch: pytest.MonkeyPatch, first: int, second: int, ends: int, counts: tuple[int, int]
) -> None:
    free(monkeypatch, cuda0=first, cuda1=second)
    parts = spread(10, (FIRST, SECOND), ends)
    assert [part.device for part in parts] == [FIRST, SECOND]
    assert tuple(len(part.layers) for part in parts) == counts
    assert [layer for part in parts for layer in part.layers] == list(range(10))


@pytest.mark.parametrize("layers", [3, 7, 33])
def test_no_other_division_leaves_more_to_the_layer_that_has_least(
    monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    room = {"cuda0": 40, "cuda1": 25, "cuda2": 90}
    free(monkeypatch, **room)

    def least(counts: tuple[int, ...]) -> float:
        return min(size / count for size, count in zip(room.values(), counts, strict=True))

    every = [(a, b, layers - a - b) for a in range(1, layers - 1) for b in range(1, layers - a)]
    found = tuple(len(part.layers) for part in spread(layers, (FIRST, SECOND, THIRD), 0))
    assert least(found) == max(map(least, every))


def test_parts_on_one_device_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, cuda0=100, cuda1=100)
    parts = spread(8, (FIRST, SECOND, FIRST), 0)
    assert [len(part.layers) for part in parts] == [2, 4, 2]


def test_more_devices_than_layers_are_refused(tiny_directory: Path) -> None:
    with pytest.raises(ConfigError, match="device_map has 3 devices, and the base 2 layers; name as many"):
        load_base(tiny_directory, quantization="none", device_map="cpu,cpu,cpu")
