"""New keys and values go to their places, and nothing else in the cache changes."""

from __future__ import annotations

import pytest
import torch

from brainstacks.gpu_kernels.kv_store import store

pytestmark = pytest.mark.static_cuda

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("kv_heads", "dim"), [(1, 64), (2, 80), (3, 20), (8, 128)])
@pytest.mark.parametrize("places", [torch.int32, torch.int64])
def test_each_token_is_stored_at_its_place_and_no_other_is_touched(
    dtype: torch.dtype, kv_heads: int, dim: int, places: torch.dtype
) -> None:
    """As transformers gives them: a view of [1, kv_heads, T, dim]."""
    random = torch.Generator().manual_seed(dim)
    tokens, blocks, size = 7, 5, 16
    cells = torch.randperm(blocks * size, generator=random)[:tokens]
    key, value = torch.randn(2, kv_heads, tokens, dim, generator=random).to(DEVICE, dtype)
    keys, values = torch.full((2, blocks, kv_heads, size, dim), 7.0).to(DEVICE, dtype)
    of, at = (cell.to(DEVICE, places) for cell in (cells // size, cells % size))
    store(key.transpose(0, 1), value.transpose(0, 1), of, at, keys, values)
    for stored, given in ((keys, key), (values, value)):
        expected = torch.full_like(stored, 7.0)
        for token, cell in enumerate(cells.tolist()):
            expected[cell // size, :, cell % size] = given[:, token]
        assert torch.equal(stored, expected)


def test_of_padding_tokens_with_one_place_any_is_stored() -> None:
    key, value = torch.randn(2, 4, 2, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    keys, values = torch.zeros(2, 3, 2, 16, 64, device=DEVICE)
    scratch = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    store(key, value, scratch, scratch, keys, values)
    assert any(torch.equal(keys[0, :, 0], one) for one in key)
    assert any(torch.equal(values[0, :, 0], one) for one in value)
    assert not keys[1:].any()
    assert not keys[:, :, 1:].any()


def test_dimensions_that_do_not_lie_side_by_side_are_refused() -> None:
    key = torch.zeros(3, 2, 64, 2, device=DEVICE)[..., 0]
    cache = torch.zeros(2, 2, 16, 64, device=DEVICE)
    at = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="dimensions of a value are 2 apart"):
        store(key.contiguous(), key, at, at, cache, cache.clone())
