"""What PEFT's configuration says is understood as PEFT understands it, or refused by its field's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from brainstacks.config import PROJECTIONS
from brainstacks.stacks.module_names import ModuleName
from brainstacks.stacks.one_expert import factors
from brainstacks.stacks.peft_config import CARRIED_INITS, CONFIG_NAME, NO_EFFECT, PeftConfig
from brainstacks.stacks.peft_import import import_adapter
from brainstacks.stacks.tensors import load_stack
from tests.stacks.adapters import BASE, configure, refusal

MODULES = [str(ModuleName("model.layers.", n, p)) for n in (0, 1, 11) for p in PROJECTIONS]


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["q_proj", "proj", "mlp.up_proj", "model.layers.1.self_attn.o_proj"]},
        {"target_modules": r"model\.layers\.1.*_proj"},
        {"target_modules": r"layers\.1"},
        {"target_modules": ["o_proj"], "exclude_modules": ["layers.1.self_attn.o_proj"]},
        {"target_modules": ["o_proj", "k_proj"], "exclude_modules": ".*1.*"},
        {"target_modules": ["o_proj", "model.layers.0.self_attn.k_proj"], "layers_to_transform": [1, 11]},
        {"target_modules": ["o_proj"], "layers_to_transform": 11, "layers_pattern": "layers"},
        {"target_modules": ["o_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "lay.rs"]},
        {"target_modules": ["o_proj"], "layers_to_transform": [0], "layers_pattern": ["h"]},
        {"target_modules": ["o_proj"], "layers_to_transform": []},
    ],
    ids=str,
)
def test_the_linears_that_are_targeted_are_pefts(fields: dict[str, Any]) -> None:
    ours, theirs = PeftConfig.from_document({"peft_type": "LORA", **fields}), peft.LoraConfig(**fields)
    found = [bool(check_target_module_exists(theirs, module)) for module in MODULES]
    assert [ours.targeted(module) for module in MODULES] == found


def test_the_pattern_that_counts_is_pefts() -> None:
    keys = [
        r"1.mlp.up_proj",
        "up_proj",
        "up",
        r"layers\.0\..*",
        "q_proj|o_proj",
        "^model.layers.1.mlp.down_proj",
    ]
    pattern = {key: number for number, key in enumerate(keys, 2)}
    document = {"peft_type": "LORA", "target_modules": "all-linear", "r": 1}
    ours = PeftConfig.from_document({**document, "rank_pattern": pattern, "alpha_pattern": pattern})
    for module in MODULES:
        rank = pattern.get(get_pattern_key(list(pattern), module), 1)
        alpha = pattern.get(get_pattern_key(list(pattern), module), 8)
        assert ours.rank_of(module) == rank
        assert ours.scaling_of(module) == alpha / rank


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
    file = adapter.with_suffix(".safetensors")
    import_adapter(adapter, BASE, "math", file, lambda _: None)
    assert any(B.any() for _, _, B in factors(load_stack(file)))


IMPOSSIBLE: dict[str, list[Any]] = {
    "r": [0, -1, True, "8", 2.5],
    "lora_alpha": [0, -4, "16", False],
    "use_rslora": [1, "true"],
    "target_modules": [7, [1], "(", [], None, "a{99999999999999999999}", "(" * 3000 + ")" * 3000],
    "exclude_modules": ["["],
    "layers_to_transform": ["0", [0.5], [True]],
    "layers_pattern": [{}, ["("], ["(?P<layer>x)"]],
    "rank_pattern": [[], {"(": 4}, {"q_proj": 0}, {"a{99999999999999999999}": 4}],
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
        (b'{"lora_alpha": 1' + b"0" * 400 + b"}", "64 bits"),
        (b"[" * 100_000, "nested"),
        (b" " * (2**20 + 1), "at most"),
        (b"\x80\x04", "UTF-8"),
    ],
)
def test_a_configuration_that_is_not_strict_json_is_refused(content: bytes, says: str, adapter: Path) -> None:
    (adapter / CONFIG_NAME).write_bytes(content)
    assert says in refusal(adapter)


def test_a_document_without_the_fields_of_later_versions_has_their_defaults() -> None:
    config = PeftConfig.from_document({"peft_type": "LORA", "target_modules": ["q_proj"]})
    assert (config.rank, config.alpha, config.rslora) == (8, 8.0, False)
    assert config.scaling_of("model.layers.0.self_attn.q_proj") == 1.0
