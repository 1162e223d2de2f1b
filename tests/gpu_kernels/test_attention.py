"""Attention over the paged cache by Triton's kernels is softmax attention, whatever rows are beside a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from brainstacks.gpu_kernels import attention, work_list
from brainstacks.gpu_kernels.kv_store import store
from brainstacks.gpu_kernels.partials import Partials

pytestmark = pytest.mark.static_cuda

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BLOCK = 16
TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}

Run = tuple[int, int, int]
"""A sequence; the position of its first new token; how many there are."""


@dataclass
class Layer:
    """Its constants."""

    heads: int = 4
    kv_heads: int = 2
    dim: int = 16
    dtype: torch.dtype = torch.float32
    window: int | None = None
    softcap: float | None = None

    @property
    def options(self) -> dict[str, Any]:
        return {"scale": 1.7 * self.dim**-0.5, "window": self.window, "softcap": self.softcap}


@dataclass
class Sequences:
    """Sequences that lie scattered over a cache, in which everything else is NaN."""

    layer: Layer
    lengths: Sequence[int]
    tables: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        layer = self.layer
        self.random = torch.Generator().manual_seed(sum(self.lengths))
        sizes = [-(-n // BLOCK) for n in self.lengths]
        blocks = sum(sizes) + 3
        self.keys, self.values = torch.full(
            (2, blocks, layer.kv_heads, BLOCK, layer.dim), float("nan"), device=DEVICE, dtype=layer.dtype
        )
        order = 1 + torch.randperm(blocks - 1, generator=self.random)  # block 0 is padding's
        self.tables = list(order[: sum(sizes)].split(sizes))
        self.key = [self.new(n, layer.kv_heads) for n in self.lengths]
        self.value = [self.new(n, layer.kv_heads) for n in self.lengths]
        self.query = [self.new(n, layer.heads) for n in self.lengths]

    def new(self, tokens: int, heads: int) -> Tensor:
        return torch.randn(tokens, heads, self.layer.dim, generator=self.random).to(DEVICE, self.layer.dtype)

    def write(self, row: int, end: int) -> None:
        """The tokens of a sequence before position `end`."""
        at = torch.arange(end)
        blocks = self.tables[row][at // BLOCK]
        for cache, given in ((self.keys, self.key), (self.values, self.value)):
            cache[blocks, :, at % BLOCK] = given[row][:end]

    def plain(self, row: int, position: int) -> Tensor:
        """[heads, dim] float32 of one token."""
        layer = self.layer
        first = 0 if layer.window is None else max(0, position - layer.window + 1)
        key, value = (
            held[row][first : position + 1].float().repeat_interleave(layer.heads // layer.kv_heads, 1)
            for held in (self.key, self.value)
        )
        scores = torch.einsum("hd,khd->hk", self.query[row][position].float(), key) * layer.options["scale"]
        if layer.softcap is not None:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        return torch.einsum("hk,khd->hd", scores.softmax(-1), value)


class Step:
    """Static tensors, which `fill` fills in for some runs of tokens: decode rows first.

    Args:
        rows, tokens, table: at the most; what a step leaves is padding, or not listed.
    """

    def __init__(self, layer: Layer, rows: int = 8, tokens: int = 200, table: int = 200) -> None:
        self.layer = layer
        heads = layer.heads, layer.dim
        group = layer.heads // layer.kv_heads
        self.tile = attention.prefill_tile(group, layer.dim, layer.dtype)
        decode = work_list.decode_capacity(rows, table * BLOCK)
        prefill = work_list.prefill_capacity(rows, tokens, self.tile)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=DEVICE)

        self.tables, self.ends, self.total = integers(table), integers(rows + 1), integers(1)
        self.items, self.tiles = integers(decode, work_list.FIELDS), integers(prefill, work_list.FIELDS)
        self.partials = Partials.empty(decode, *heads, DEVICE)
        self.partials.outputs.fill_(float("nan"))
        # As transformers has them: [heads, T, dim].
        self.query = torch.zeros(layer.heads, tokens, layer.dim, device=DEVICE, dtype=layer.dtype)
        self.out = torch.zeros(tokens, *heads, device=DEVICE, dtype=layer.dtype)

    def fill(self, sequences: Sequences, decode: Sequence[Run], prefill: Sequence[Run]) -> None:
        self.out.fill_(float("nan"))
        runs = [*decode, *prefill]
        tables = [sequences.tables[row] for row, _, _ in runs]
        self.tables[: sum(map(len, tables))] = torch.cat(tables).to(DEVICE)
        first = np.cumsum([0, *map(len, tables)])[:-1]
        starts, counts = (np.array([run[i] for run in runs], np.int64) for i in (1, 2))
        tokens = np.cumsum(counts) - counts
        query = torch.cat([sequences.query[row][start : start + n] for row, start, n in runs])
        self.query[:, : len(query)] = query.transpose(0, 1)
        n = len(decode)
        window = self.layer.window
        lists = [held.cpu().numpy() for held in (self.items, self.ends, self.tiles, self.total)]
        items, ends, tiles, total = lists
        work_list.write_decode_items(first[:n], starts[:n], items, ends, window)
        work_list.write_prefill_items(
            first[n:], tokens[n:], counts[n:], starts[n:], self.tile, tiles, total, window
        )
        for static, written in zip((self.items, self.ends, self.tiles, self.total), lists, strict=True):
            static.copy_(torch.from_numpy(written))

    def compute(self, sequences: Sequences) -> None:
        shared = self.query.transpose(0, 1), sequences.keys, sequences.values, self.tables
        options = self.layer.options
        attention.decode(*shared, self.items, self.ends, self.partials, self.out, **options)
        attention.prefill(*shared, self.tiles, self.total, self.out, **options)


def computed(sequences: Sequences, decode: Sequence[Run], prefill: Sequence[Run] = ()) -> Tensor:
    """[T, heads, dim] of the runs' tokens, whose keys and values, and all before them, are stored."""
    for row, start, count in (*decode, *prefill):
        sequences.write(row, start + count)
    step = Step(sequences.layer)
    step.fill(sequences, decode, prefill)
    step.compute(sequences)
    count = sum(run[2] for run in (*decode, *prefill))
    assert step.out[count:].isnan().all()  # nothing else is written
    return step.out[:count]


def assert_plain(found: Tensor, sequences: Sequences, runs: Sequence[Run]) -> None:
    expected = [sequences.plain(row, start + i) for row, start, count in runs for i in range(count)]
    limit = TOLERANCE[sequences.layer.dtype]
    torch.testing.assert_close(found.float(), torch.stack(expected), atol=limit, rtol=limit)


LAYERS = [
    Layer(2, 2, 64),
    Layer(4, 2, 80, torch.bfloat16),
    Layer(9, 3, 64, torch.float16, window=20),
    Layer(4, 1, 96, torch.bfloat16, window=50),
    Layer(8, 1, 256, softcap=2.0),
    Layer(7, 1, 128, torch.bfloat16, window=40, softcap=50.0),
    Layer(4, 2, 8, window=1),
    Layer(20, 1, 16),  # more heads than a tile of decode has rows
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_decode_equals_softmax_attention_for_rows_of_any_length(layer: Layer) -> None:
    sequences = Sequences(layer, [1, 5, 16, 17, 300])
    runs = [(row, length - 1, 1) for row, length in enumerate(sequences.lengths)]
    assert_plain(computed(sequences, runs), sequences, runs)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_prefill_equals_softmax_attention_also_where_it_goes_on(layer: Layer) -> None:
    runs = [(0, 0, 17), (1, 16, 3), (2, 0, 1), (3, 60, 30)]
    sequences = Sequences(layer, [start + count for _, start, count in runs])
    assert_plain(computed(sequences, [], runs), sequences, runs)


@pytest.mark.parametrize("layer", [Layer(), Layer(window=30)], ids=str)
def test_decode_and_prefill_rows_of_one_step_do_not_touch_each_other(layer: Layer) -> None:
    sequences = Sequences(layer, [270, 40, 33, 50])
    decode, prefill = [(0, 269, 1), (1, 39, 1)], [(2, 0, 33), (3, 30, 20)]
    assert_plain(computed(sequences, decode, prefill), sequences, [*decode, *prefill])


@pytest.mark.parametrize(
    ("dtype", "window"), [(torch.float32, None), (torch.float16, 100), (torch.bfloat16, None)]
)
def test_a_rows_result_is_the_same_to_the_last_bit_whatever_rows_are_beside_it(
    dtype: torch.dtype, window: int | None
) -> None:
    layer = Layer(6, 2, 16, dtype, window=window)
    sequences = Sequences(layer, [520, 3, 50, 30, 40])
    decode, prefill = [(row, n - 1, 1) for row, n in enumerate(sequences.lengths)], [(4, 29, 11), (3, 0, 27)]
    together = computed(sequences, decode, prefill)
    for i, run in enumerate(decode):
        assert torch.equal(computed(sequences, [run])[0], together[i])
    assert torch.equal(computed(sequences, decode[:3][::-1]), together[:3].flip(0))
    assert torch.equal(computed(sequences, [], prefill[:1]), together[5:16])
    assert torch.equal(computed(sequences, decode[3:], prefill[::-1])[2:29], together[16:])


def test_a_row_of_more_chunks_than_are_added_up_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_list, "CHUNK", 64)
    monkeypatch.setattr(work_list, "MOST_CHUNKS", 20)
    sequences = Sequences(Layer(2, 1, 16), [1200, 1400])
    runs = [(0, 1199, 1), (1, 1399, 1)]
    assert_plain(computed(sequences, runs), sequences, runs)


class Recorder(TorchDispatchMode):
    """Each operator, with where its tensors lie and its other arguments."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        real = [arg for arg in args if not isinstance(arg, FakeTensor)]
        seen = (arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in real)
        self.calls.append((str(func), *seen))
        return func(*args, **(kwargs or {}))

    @property
    def launches(self) -> list[str]:
        return [call[0] for call in self.calls if "brainstacks" in call[0]]


def test_a_step_of_other_lengths_is_the_same_program_over_the_same_tensors() -> None:
    """The rule of CUDA graphs: three launches, whatever the lists hold."""
    layer = Layer(window=60)
    sequences = Sequences(layer, [300, 20, 40, 4])
    for row, length in enumerate(sequences.lengths):
        sequences.write(row, length)
    step = Step(layer)
    recorded = []
    for decode, prefill in (
        ([(0, 299, 1), (1, 19, 1)], [(2, 0, 40)]),
        ([(3, 3, 1)], [(0, 100, 30), (1, 2, 18), (2, 5, 6)]),
        ([], [(1, 0, 20)]),
    ):
        step.fill(sequences, decode, prefill)
        with Recorder() as recorder:
            step.compute(sequences)
        recorded.append(recorder.calls)
        runs = [*decode, *prefill]
        count = sum(run[2] for run in runs)
        assert_plain(step.out[:count], sequences, runs)
        assert step.out[count:].isnan().all()
    assert recorded[0] == recorded[1] == recorded[2]
    assert recorder.launches == [f"brainstacks.{name}.default" for name in ("attend", "combine", "attend")]


def test_on_fake_tensors_of_a_gpu_nothing_is_launched() -> None:
    layer = Layer(dim=64, dtype=torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=False), Recorder() as recorder:

        def empty(*shape: int, dtype: torch.dtype = layer.dtype) -> Tensor:
            return torch.empty(shape, dtype=dtype, device="cuda:0")

        integers = torch.int32
        keys, values = empty(9, 2, BLOCK, 64), empty(9, 2, BLOCK, 64)
        query, out, key = empty(4, 3, 64).transpose(0, 1), empty(3, 4, 64), empty(2, 3, 64).transpose(0, 1)
        at, tables = empty(3, dtype=integers), empty(7, dtype=integers)
        items = empty(12, work_list.FIELDS, dtype=integers)
        ends, total = empty(5, dtype=integers), empty(1, dtype=integers)
        partials = Partials.empty(12, 4, 64, torch.device("cuda:0"))
        store(key, key, at, at, keys, values)
        attention.decode(query, keys, values, tables, items, ends, partials, out, **layer.options)
        attention.prefill(query, keys, values, tables, items, total, out, **layer.options)
    assert recorder.launches == [
        f"brainstacks.{name}.default" for name in ("store_kv", "attend", "combine", "attend")
    ]


def test_heads_that_no_kernel_computes_are_refused_by_their_sizes() -> None:
    step = Step(Layer())
    cache = torch.zeros(2, 2, BLOCK, 16, device=DEVICE, dtype=torch.float16)
    shared = cache, cache, step.tables, step.tiles, step.total, step.out
    with pytest.raises(ValueError, match=r"queries are torch.float32 and keys torch.float16"):
        attention.prefill(step.query.transpose(0, 1), *shared, scale=1.0)
    half = step.query.half()
    with pytest.raises(ValueError, match="dimensions are 200 apart"):
        attention.prefill(half.transpose(1, 2).contiguous().transpose(1, 2), *shared, scale=1.0)
    with pytest.raises(ValueError, match="300 dimensions; the kernels take 256 at the most"):
        attention.prefill_tile(1, 300, torch.float32)
