"""Router features are the mix of two base-only hidden states, whatever the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from brainstacks.routing.features import mixed_hidden_states, pad_prompts
from tests.tiny import FAMILIES, tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [2, 3])
def test_features_equal_the_mix_of_all_hidden_states(family: str, layers: int) -> None:
    types: dict[str, Any] = {"layer_types": ["sliding_attention"] * layers} if family == "gemma3_text" else {}
    model = tiny_model(family, num_hidden_layers=layers, **types)
    ids = torch.tensor([[5, 3, 8, 1, 2, 9, 4, 7, 6, 11, 10]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states
        found = mixed_hidden_states(model, ids, mid_weight=0.45, last_weight=0.55)
    assert len(states) == layers + 1
    expected = 0.45 * states[layers // 2] + 0.55 * states[-1]
    assert found.shape == (1, 11, 32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_padding_reaches_no_real_token() -> None:
    model = tiny_model()
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10]]
    ids, mask = pad_prompts(prompts, 256, CPU)
    with torch.no_grad():
        batch = mixed_hidden_states(model, ids)
        for row, prompt in enumerate(prompts):
            alone = mixed_hidden_states(model, torch.tensor([prompt]))
            torch.testing.assert_close(batch[row, mask[row]][None], alone, atol=1e-5, rtol=1e-5)


def test_prompts_are_cut_to_the_first_tokens_and_padded_on_the_right() -> None:
    ids, mask = pad_prompts([[1, 2, 3, 4], [5]], 3, CPU)
    assert ids.tolist() == [[1, 2, 3], [5, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


def test_the_hook_that_reads_the_middle_is_gone_afterwards_even_after_an_error() -> None:
    model = tiny_model()
    mixed_hidden_states(model, torch.tensor([[1, 2]]))
    with pytest.raises(IndexError):
        mixed_hidden_states(model, torch.tensor([[10**6]]))
    assert all(not m._forward_pre_hooks for m in model.modules())
