"""Which modules lie where, and that a forward gets from part to part; other devices are seen on GPUs that
compute nothing (`tests/engine/runner/test_device_map.py`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import dispatch_model

from brainstacks.device_map import Part
from brainstacks.layers.model_parts import connect, end_bytes, module_devices
from tests.tiny import FAMILIES, tiny_config, tiny_model

CPU, META = torch.device("cpu"), torch.device("meta")
PARTS = (Part(CPU, range(1)), Part(META, range(1, 2)))
IDS = torch.arange(12).view(2, 6)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2", "gemma3"])
def test_every_weight_has_a_device_and_what_is_no_layer_the_first(family: str) -> None:
    from transformers import AutoModelForCausalLM

    with META:
        model = AutoModelForCausalLM.from_config(tiny_config(family))
    places = module_devices(model, PARTS)
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        (found,) = [where for where in places if name.startswith(f"{where}.")]
        assert places[found] == (
            META if "language_model.layers.1." in name or "model.layers.1." in name else CPU
        )
        assert list(model.get_submodule(found).parameters()) or list(model.get_submodule(found).buffers())


def test_a_tied_head_counts_once_among_what_is_no_layer() -> None:
    sizes = [end_bytes(tiny_model(tie_word_embeddings=tied)) for tied in (True, False)]
    embedding, norm = 259 * 32 * 4, 32 * 4
    assert sizes == [embedding + norm, 2 * embedding + norm]


@torch.no_grad()
def test_the_hooks_that_a_model_was_loaded_with_leave_and_ours_change_no_value() -> None:
    plain, model = tiny_model(), tiny_model()
    dispatch_model(model, dict.fromkeys(module_devices(model, PARTS), "cpu"), force_hooks=True)
    assert any(hasattr(module, "_hf_hook") for module in model.modules())
    connect(model, (Part(CPU, range(1)), Part(CPU, range(1, 2))))
    assert not any(hasattr(module, "_hf_hook") for module in model.modules())
    assert torch.equal(model(IDS).logits, plain(IDS).logits)


@torch.no_grad()
def test_each_forward_has_its_own_angles() -> None:
    plain, model = tiny_model(), tiny_model()
    connect(model, (Part(CPU, range(1)), Part(CPU, range(1, 2))))
    for positions in (None, torch.arange(6)[None] + 3, torch.arange(6)[None] * 2):
        given: dict[str, Any] = {"position_ids": positions}
        assert torch.equal(model(IDS, **given).logits, plain(IDS, **given).logits)
