"""Compiled decode attention equals PyTorch's, and writes one place of the cache per row and head."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brainstacks.kernels import attention
from brainstacks.kernels.attention import BLOCK, paged_decode, supports

DTYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Decode:
    """The arguments of `paged_decode`, which describes them."""

    query: Tensor
    key: Tensor
    value: Tensor
    keys: Tensor
    values: Tensor
    table: Tensor
    lengths: Tensor
    scale: float
    window: int | None

    def row(self, i: int) -> Decode:
        """The same with row i only."""
        query, key, value = (t[:, i : i + 1] for t in (self.query, self.key, self.value))
        table, lengths = self.table[i : i + 1].contiguous(), self.lengths[i : i + 1].contiguous()
        return replace(self, query=query, key=key, value=value, table=table, lengths=lengths)


def random_decode(
    lengths: list[int],
    group: int = 3,
    kv_heads: int = 2,
    dim: int = 64,
    window: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Decode:
    """Rows whose blocks are shuffled; whatever no row may read is NaN."""
    random = torch.Generator().manual_seed(seed)
    n, heads = len(lengths), group * kv_heads
    # As the model gives them: parts of one [n, (H + 2 H_kv) * D] output.
    mixed = torch.randn(n, (heads + 2 * kv_heads) * dim, generator=random).to(dtype)
    query, key, value = mixed.view(n, -1, dim).transpose(0, 1).split([heads, kv_heads, kv_heads])
    needed = [-(-length // BLOCK) for length in lengths]
    total = sum(needed) + 3
    order = (torch.randperm(total - 1, generator=random) + 1).tolist()
    keys = torch.full((total, kv_heads, dim, BLOCK), torch.nan, dtype=dtype).transpose(2, 3)
    values = torch.full((total, kv_heads, BLOCK, dim), torch.nan, dtype=dtype)
    table = torch.zeros(n, max(needed) + 1, dtype=torch.int32)  # block 0 belongs to no row
    for i, (length, count) in enumerate(zip(lengths, needed, strict=True)):
        table[i, :count] = torch.tensor([order.pop() for _ in range(count)])
        for position in range(length - 1):
            block, offset = table[i, position // BLOCK], position % BLOCK
            keys[block, :, offset] = torch.randn(kv_heads, dim, generator=random).to(dtype)
            values[block, :, offset] = torch.randn(kv_heads, dim, generator=random).to(dtype)
    counts = torch.tensor(lengths, dtype=torch.int32)
    return Decode(query, key, value, keys, values, table, counts, dim**-0.5, window)


def computed(call: Decode) -> tuple[Tensor, Tensor, Tensor]:
    """The output and the cache, keys and values, that the kernel leaves."""
    keys, values = call.keys.clone(), call.values.clone()
    arguments = (call.query, call.key, call.value, keys, values, call.table, call.lengths)
    return paged_decode(*arguments, call.scale, call.window), keys, values


def plain(call: Decode) -> tuple[Tensor, Tensor, Tensor]:
    """The same, row by row in float64, by PyTorch."""
    keys, values = call.keys.clone(), call.values.clone()
    rows = []
    for i, length in enumerate(call.lengths.tolist()):
        blocks, last = call.table[i].long(), length - 1
        keys[blocks[last // BLOCK], :, last % BLOCK] = call.key[:, i]
        values[blocks[last // BLOCK], :, last % BLOCK] = call.value[:, i]
        first = 0 if call.window is None else max(0, length - call.window)
        seen = [
            t[blocks].transpose(1, 2).flatten(0, 1)[first:length].transpose(0, 1).double()
            for t in (keys, values)
        ]
        query = call.query[:, i : i + 1].double()
        out = F.scaled_dot_product_attention(
            query[None], seen[0][None], seen[1][None], scale=call.scale, enable_gqa=True
        )
        rows.append(out[0, :, 0])
    return torch.stack(rows), keys, values


def same_bits(left: Tensor, right: Tensor) -> bool:
    kind = torch.int16 if left.dtype == torch.bfloat16 else torch.int32
    return torch.equal(left.view(kind), right.view(kind))


def assert_same(call: Decode) -> None:
    found, expected = computed(call), plain(call)
    assert found[0].dtype == call.query.dtype
    # The sums are float32; a bfloat16 output is rounded once.
    relative = 1e-5 if call.query.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found[0].double(), expected[0], rtol=relative, atol=1e-5)
    assert same_bits(found[1], expected[1]), "keys"
    assert same_bits(found[2], expected[2]), "values"


@given(
    lengths=st.lists(st.sampled_from([1, 2, 15, 16, 17, 31, 32, 33, 50]), min_size=1, max_size=6),
    group=st.sampled_from([1, 2, 3, 9]),
    kv_heads=st.integers(1, 3),
    dim=st.sampled_from([8, 64, 80, 128]),
    window=st.sampled_from([None, 1, 8, 16, 17, 1000]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=40)
def test_decode_equals_pytorchs_attention_and_stores_at_the_last_position_only(
    lengths: list[int],
    group: int,
    kv_heads: int,
    dim: int,
    window: int | None,
    seed: int,
    dtype: torch.dtype,
) -> None:
    assert_same(random_decode(lengths, group, kv_heads, dim, window, seed, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_and_among_others(dtype: torch.dtype) -> None:
    call = random_decode([33, 1, 16, 17, 50], window=20, dtype=dtype)
    together, _, _ = computed(call)
    for i in range(5):
        alone, _, _ = computed(call.row(i))
        assert torch.equal(alone[0], together[i]), i


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_share_the_blocks_of_a_prefix_read_the_same_tokens(dtype: torch.dtype) -> None:
    call = random_decode([40, 40], dtype=dtype)
    table = call.table.clone()
    table[1, :2] = table[0, :2]
    assert_same(replace(call, table=table))


def test_strides_of_query_key_and_value_do_not_matter() -> None:
    call = random_decode([18, 5])
    assert not call.query.is_contiguous()
    plainer = replace(
        call, query=call.query.contiguous(), key=call.key.contiguous(), value=call.value.contiguous()
    )
    for left, right in zip(computed(call), computed(plainer), strict=True):
        assert same_bits(left, right)


def test_scores_far_from_zero_do_not_overflow() -> None:
    call = random_decode([20, 33])
    assert_same(replace(call, scale=40.0))


def test_a_row_with_a_number_that_is_none_disturbs_no_other() -> None:
    call = random_decode([20, 33, 7])
    expected, _, _ = computed(call)
    query = call.query.clone()
    query[:, 1, 3] = torch.nan
    found, _, _ = computed(replace(call, query=query))
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert found[1].isnan().all()


def test_without_a_team_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    call = random_decode([33, 1, 16, 50])
    expected = computed(call)
    monkeypatch.setattr(attention, "parallel_address", lambda: 0)
    for left, right in zip(computed(call), expected, strict=True):
        assert same_bits(left, right)


def test_only_what_the_loops_are_compiled_for_is_supported() -> None:
    assert all(supports(torch.zeros(1, dtype=dtype)) for dtype in DTYPES)
    assert not supports(torch.zeros(1, dtype=torch.float16))
    assert not supports(torch.zeros(1, dtype=torch.float64))
    assert not supports(torch.zeros(1, device="meta"))


def test_a_cache_in_another_layout_is_refused() -> None:
    call = random_decode([20])
    for changed in (
        replace(call, keys=call.keys.contiguous()),
        replace(call, values=call.values.transpose(2, 3).contiguous().transpose(2, 3)),
    ):
        with pytest.raises(ValueError, match="not laid out in blocks of 16"):
            computed(changed)
