"""What a stack cannot carry, and what is unsound, is refused by its name, and leaves no file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from brainstacks.base_identity import BaseIdentity
from brainstacks.errors import BrainstacksError, IncompatibleArtifact, InvalidArtifact
from brainstacks.stacks.peft_config import CARRIED_INITS, CONFIG_NAME, NO_EFFECT, PeftConfig
from brainstacks.stacks.peft_import import WEIGHTS_NAME, import_adapter
from tests.stacks.adapters import configure, save_adapter
from tests.stacks.files import container
from tests.stacks.published import DIMS

BASE = BaseIdentity("tiny", "f" * 64, "llama", 2, DIMS, 32)
Tensors = dict[str, Tensor]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapters") / "saved", target_modules=["q_proj", "v_proj"])


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    """PEFT's, free to be spoilt."""
    shutil.copytree(saved, tmp_path / "adapter")
    return tmp_path / "adapter"


def rewrite(adapter: Path, change: Callable[[Tensors], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(adapter / WEIGHTS_NAME).items()}
    change(tensors)
    save_file(tensors, adapter / WEIGHTS_NAME)


def refusal(adapter: Path, kind: type[BrainstacksError] = InvalidArtifact) -> str:
    output = adapter.with_suffix(".safetensors")
    with pytest.raises(kind) as caught:
        import_adapter(adapter, BASE, "math", output, lambda _: None)
    assert not output.exists()
    assert caught.type is kind
    return caught.value.message


CHANGES: dict[str, Any] = {
    "peft_type": "LOHA",
    "task_type": "SEQ_CLS",
    "use_dora": True,
    "bias": "lora_only",
    "lora_bias": True,
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [5],
    "target_parameters": ["experts.gate_up_proj"],
    "layer_replication": [[0, 2], [1, 2]],
    "megatron_config": {"tensor_parallel_size": 2},
    "use_qalora": True,
    "arrow_config": {"top_k": 3},
    "kasa_config": {"beta": 1e-4},
    "velora_config": {"num_groups": 2},
    "monteclora_config": {"num_samples": 8},
    "use_bdlora": {"nblocks": 2},
    "corda_config": {"cache_file": "x"},
    "lora_ga_config": {"scale": "stable"},
    "loftq_config": {"loftq_bits": 4},
    "ensure_weight_tying": True,
    "alora_invocation_tokens": [1, 2],
    "field_of_a_later_version": "some value",
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_stack_cannot_carry_is_refused_by_the_name_of_its_field(name: str, adapter: Path) -> None:
    configure(adapter, **{name: CHANGES[name]})
    message = refusal(adapter)
    assert f"{name} = " in message
    assert ": " in message.split(f"{name} = ")[1], "a reason, or a way out"


def test_every_field_of_pefts_own_configuration_is_read_ignored_on_purpose_or_refused() -> None:
    """A field that a later PEFT brings fails here, and is refused until somebody has looked at it."""
    read = {
        *("peft_type", "task_type", "base_model_name_or_path", "init_lora_weights", "r", "lora_alpha"),
        *("use_rslora", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("rank_pattern", "alpha_pattern"),
    }
    fields = set(peft.LoraConfig.__dataclass_fields__)
    assert read | NO_EFFECT <= fields
    assert fields - read - NO_EFFECT == set(CHANGES) - read - {"field_of_a_later_version"}


@pytest.mark.parametrize("how", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq", 1])
def test_an_initialisation_that_changed_the_base_is_refused(how: object, adapter: Path) -> None:
    configure(adapter, init_lora_weights=how)
    assert "path_initial_model_for_weight_conversion" in refusal(adapter)


@pytest.mark.parametrize("how", CARRIED_INITS)
def test_one_that_left_it_alone_is_not(how: object, adapter: Path) -> None:
    configure(adapter, init_lora_weights=how, fan_in_fan_out=True, lora_dropout=0.1, eva_config={"rho": 2.0})
    import_adapter(adapter, BASE, "math", adapter.with_suffix(".safetensors"), lambda _: None)


IMPOSSIBLE: dict[str, list[Any]] = {
    "r": [0, -1, True, "8", 2.5],
    "lora_alpha": [0, -4, "16", False],
    "use_rslora": [1, "true"],
    "target_modules": [7, [1], "(", [], None],
    "exclude_modules": ["["],
    "layers_to_transform": ["0", [0.5], [True]],
    "layers_pattern": [{}, ["("], ["(?P<layer>x)"]],
    "rank_pattern": [[], {"(": 4}, {"q_proj": 0}],
    "alpha_pattern": [{"q_proj": None}],
    "base_model_name_or_path": [3],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in IMPOSSIBLE.items() for value in values]
)
def test_impossible_values_are_refused_with_field_and_rule(name: str, value: object, adapter: Path) -> None:
    configure(adapter, **{name: value})
    message = refusal(adapter)
    assert name in message
    assert ";" in message


def test_layers_beside_a_pattern_are_refused_as_peft_refuses_them(adapter: Path) -> None:
    configure(adapter, target_modules=".*q_proj", layers_to_transform=[0])
    assert "layers_to_transform" in refusal(adapter)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[]", "is an object"),
        (b'{"r": 3, "r": 4}', "'r' twice"),
        (b'{"r": NaN}', "finite"),
        (b"[" * 100_000, "nested"),
        (b" " * (2**20 + 1), "at most"),
        (b"\x80\x04", "UTF-8"),
    ],
)
def test_a_configuration_that_is_not_strict_json_is_refused(content: bytes, says: str, adapter: Path) -> None:
    (adapter / CONFIG_NAME).write_bytes(content)
    assert says in refusal(adapter)


def test_missing_files_are_named_and_no_pickle_is_read(adapter: Path) -> None:
    (adapter / WEIGHTS_NAME).rename(adapter / "adapter_model.bin")
    assert "never read" in refusal(adapter)
    (adapter / CONFIG_NAME).unlink()
    assert CONFIG_NAME in refusal(adapter)


# --- tensors -------------------------------------------------------------------------------------


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


def test_a_document_without_the_fields_of_later_versions_has_their_defaults() -> None:
    config = PeftConfig.from_document({"peft_type": "LORA", "target_modules": ["q_proj"]})
    assert (config.rank, config.alpha, config.rslora) == (8, 8.0, False)
    assert config.scaling_of("model.layers.0.self_attn.q_proj") == 1.0
