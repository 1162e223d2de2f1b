"""Adapters whose files are unsound, or do not fit, are refused by name, and leave no file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from brainstacks.errors import IncompatibleArtifact, InvalidArtifact
from brainstacks.stacks.peft_config import CONFIG_NAME
from brainstacks.stacks.peft_import import WEIGHTS_NAME, import_adapter
from tests.stacks.adapters import BASE, configure, refusal
from tests.stacks.files import container

Tensors = dict[str, Tensor]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def rewrite(adapter: Path, change: Callable[[Tensors], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(adapter / WEIGHTS_NAME).items()}
    change(tensors)
    save_file(tensors, adapter / WEIGHTS_NAME)


def test_missing_files_are_named_and_no_pickle_is_read(adapter: Path) -> None:
    (adapter / WEIGHTS_NAME).rename(adapter / "adapter_model.bin")
    assert "never read" in refusal(adapter)
    (adapter / CONFIG_NAME).unlink()
    assert CONFIG_NAME in refusal(adapter)


def poison(value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors[f"{Q}.lora_B.weight"].view(-1)[3:4].fill_(value)


@pytest.mark.parametrize(
    ("value", "says"), [(float("nan"), "NaN"), (float("-inf"), "infinity"), (3e38, "at most 16384")]
)
def test_values_that_are_not_finite_or_absurd_are_refused(value: float, says: str, adapter: Path) -> None:
    rewrite(adapter, poison(value))
    message = refusal(adapter)
    assert says in message
    assert "q_proj.lora_B" in message


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        f"{Q}.lora_magnitude_vector",
        f"{Q}.lora_B.bias",
        f"{Q}.base_layer.weight",
        "base_model.model.model.layers.0.mlp.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight",
        "base_model.model.model.layers.-1.self_attn.q_proj.lora_A.weight",
        "base_model.model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
        "../../layers.0.self_attn.q_proj.lora_A.weight",
        "x" * 5000,
    ],
)
def test_a_tensor_of_anything_else_is_refused_by_name(name: str, adapter: Path) -> None:
    rewrite(adapter, lambda tensors: tensors.update({name: torch.zeros(3, 32)}))
    message = refusal(adapter)
    assert name[:90] in message
    assert len(message) < 500


def test_the_same_linear_under_two_names_is_refused(adapter: Path) -> None:
    again = torch.zeros(3, 32)
    rewrite(adapter, lambda t: t.update({f"module.{Q}.lora_A.weight": again}))
    assert "one is expected" in refusal(adapter)


def test_layers_of_two_decoders_are_refused(adapter: Path) -> None:
    rewrite(
        adapter,
        lambda tensors: tensors.update(
            {"base_model.model.layers.0.self_attn.k_proj.lora_A.weight": torch.zeros(3, 32)}
        ),
    )
    assert "one decoder is expected" in refusal(adapter)


def test_half_a_lora_is_refused(adapter: Path) -> None:
    rewrite(adapter, lambda tensors: tensors.pop(f"{Q}.lora_B.weight"))
    assert "lacks lora_B of model.layers.0.self_attn.q_proj" in refusal(adapter)


def test_an_adapter_without_loras_is_refused(adapter: Path) -> None:
    rewrite(adapter, lambda tensors: tensors.clear())
    assert "no LoRA" in refusal(adapter)


def test_a_linear_that_only_one_of_the_two_files_has_is_refused(adapter: Path) -> None:
    configure(adapter, target_modules=["q_proj"])
    assert "model.layers.0.self_attn.v_proj, and adapter_config.json has none" in refusal(adapter)
    configure(adapter, target_modules=["q_proj", "v_proj", "o_proj"])
    assert "model.layers.0.self_attn.o_proj, and adapter_model.safetensors has none" in refusal(adapter)


def test_a_rank_that_the_configuration_does_not_say_is_refused(adapter: Path) -> None:
    configure(adapter, r=4)
    assert "ranks 3 (A) and 3 (B), and adapter_config.json says 4" in refusal(adapter)


def test_another_base_is_refused_with_its_name(adapter: Path) -> None:
    configure(adapter, base_model_name_or_path="/home/somebody/models/Other-7B")
    rewrite(adapter, lambda tensors: tensors.update({f"{Q}.lora_A.weight": torch.zeros(3, 64)}))
    message = refusal(adapter, IncompatibleArtifact)
    assert "'Other-7B'" in message
    assert "somebody" not in message, "where it lay is nobody's business"
    assert "A [3, 64]" in message
    assert "32 -> 32" in message


def test_more_layers_than_the_base_has_are_refused(adapter: Path) -> None:
    extra = Q.replace("layers.0", "layers.2")
    rewrite(
        adapter,
        lambda tensors: tensors.update(
            {f"{extra}.lora_A.weight": torch.zeros(3, 32), f"{extra}.lora_B.weight": torch.zeros(32, 3)}
        ),
    )
    assert "has 2 layers" in refusal(adapter, IncompatibleArtifact)


def test_other_dtypes_and_too_high_ranks_are_refused(adapter: Path) -> None:
    rewrite(adapter, lambda t: t.update({name: tensor.double() for name, tensor in t.items()}))
    assert "F64" in refusal(adapter)
    wide = {"A": torch.zeros(2000, 32), "B": torch.zeros(32, 2000)}
    rewrite(adapter, lambda t: t.update({f"{Q}.lora_{part}.weight": tensor for part, tensor in wide.items()}))
    rewrite(adapter, lambda t: t.update({name: tensor.float() for name, tensor in t.items()}))
    configure(adapter, rank_pattern={"layers.0.self_attn.q_proj": 2000})
    assert "rank is 2000; it lies in 1..1024" in refusal(adapter)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b'{"a":{"dtype":"F32","shape":[1099511627776,4],"data_offsets":[0,16]}}', "needs"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}', "shape"),
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            "'a' twice",
        ),
        (b"[" * 100_000, "not a JSON object"),
    ],
)
def test_a_header_that_lies_is_refused(header: bytes, says: str, adapter: Path) -> None:
    (adapter / WEIGHTS_NAME).write_bytes(container(header, bytes(4)))
    assert says in refusal(adapter)


def test_a_bad_domain_name_is_refused(adapter: Path) -> None:
    with pytest.raises(InvalidArtifact, match="cannot name a domain"):
        import_adapter(adapter, BASE, "../x", adapter.with_suffix(".safetensors"), lambda _: None)
