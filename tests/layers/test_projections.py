"""The seven projections are found in every supported family; a model without them is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brainstacks.config import PROJECTIONS
from brainstacks.errors import UnsupportedModel
from brainstacks.layers.projections import INPUT_GROUPS, decoder_layers, find_sites, projection_dims
from tests.tiny import FAMILIES, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_seven_projections_per_layer_in_every_family(family: str) -> None:
    model = tiny_model(family)
    sites = find_sites(model)
    assert set(sites) == {(layer, p) for layer in range(2) for p in PROJECTIONS}
    for (layer, projection), site in sites.items():
        assert (site.layer, site.projection) == (layer, projection)
        block = "mlp" if projection in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        assert site.module is model.get_submodule(f"model.layers.{layer}.{block}.{projection}")
    assert projection_dims(sites) == {
        "q_proj": (32, 32),
        "k_proj": (32, 16),
        "v_proj": (32, 16),
        "o_proj": (32, 32),
        "gate_proj": (32, 48),
        "up_proj": (32, 48),
        "down_proj": (48, 32),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_projections_of_one_group_read_one_and_the_same_tensor_in_forward_order(family: str) -> None:
    model = tiny_model(family)
    seen: list[tuple[str, torch.Tensor]] = []
    for (layer, projection), site in find_sites(model).items():
        if layer == 0:
            site.module.register_forward_pre_hook(lambda m, args, p=projection: seen.append((p, args[0])))
    model(input_ids=torch.tensor([[1, 2, 3]]))
    order = [p for p, _ in seen]
    assert [order.index(p) for group in INPUT_GROUPS for p in group] == list(range(7))
    inputs = dict(seen)
    for group in INPUT_GROUPS:
        assert all(inputs[p] is inputs[group[0]] for p in group)


def test_a_model_without_the_projections_is_refused_by_name() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=16))
    with pytest.raises(UnsupportedModel, match="GPT2LMHeadModel"):
        find_sites(gpt2)


def test_a_layer_that_lacks_one_projection_names_it() -> None:
    model = tiny_model()
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(UnsupportedModel, match="layer 1 has 0 linears named 'up_proj'"):
        find_sites(model)


def test_a_module_without_layers_is_no_base() -> None:
    with pytest.raises(UnsupportedModel, match="Linear has no decoder layers"):
        decoder_layers(nn.Linear(2, 2))


def test_shapes_that_differ_between_layers_are_refused() -> None:
    model = tiny_model()
    model.model.layers[1].mlp.up_proj = nn.Linear(32, 40)
    with pytest.raises(UnsupportedModel, match=r"up_proj is \(32, 48\) in layer 0 and \(32, 40\) in layer 1"):
        projection_dims(find_sites(model))
