"""The cuda backend, its kernels interpreted on the CPU, computes what the model and the plain deltas do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from brainstacks.config import EngineConfig
from brainstacks.engine.runner import backend, cuda_backend
from brainstacks.engine.runner.batch import build, lay_out
from brainstacks.engine.runner.cuda_backend import CudaBackend, buckets
from brainstacks.errors import ConfigError
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.routing.features import decoder_states
from tests.engine.driving import prompt_of
from tests.engine.stepped import MIX, Stepped, Weights, assert_close, cut, expected
from tests.tiny import FAMILIES, random_stack, stack_config, tiny_model

pytestmark = [
    pytest.mark.static_cuda,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, for CUDA tensors"),
]

LENGTHS = (1, 33, 18)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_prompts_and_decoded_rows_of_any_mix_have_the_logits_of_the_plain_maths(
    tmp_path: Path, family: str
) -> None:
    changes: dict[str, Any] = {}
    if family == "gemma2":
        changes = {
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": None,  # which is not the backend's to apply
        }
    stepped = Stepped(tmp_path, "cuda", family, **changes)
    weights = [MIX[0], MIX[3], {}]
    prompts = [prompt_of(length + 2) for length in LENGTHS]
    found: list[list[Tensor]] = [[] for _ in prompts]
    rows = stepped.rows(prompts, weights)
    for together in zip(
        *(cut(row, length, 1, 1) for row, length in zip(rows, LENGTHS, strict=True)), strict=True
    ):
        for parts, logits in zip(found, stepped.run(together), strict=True):
            parts.append(logits)
    for prompt, row, parts in zip(prompts, weights, found, strict=True):
        wanted = expected(family, prompt, stepped.stacks, row, **changes)
        assert_close(torch.cat(parts), wanted, 1e-4)


def test_decode_rows_beside_runs_of_prompts(tmp_path: Path) -> None:
    stepped = Stepped(tmp_path, "cuda")
    first, second = stepped.rows([prompt_of(12), prompt_of(20, seed=1)], [MIX[2], MIX[4]])
    head, token = cut(first, 11, 1)
    stepped.run([head])
    decoded, prefilled = stepped.run([token, second])
    assert_close(decoded, expected("llama", prompt_of(12), stepped.stacks, MIX[2])[-1:], 1e-4)
    assert_close(prefilled, expected("llama", prompt_of(20, seed=1), stepped.stacks, MIX[4]), 1e-4)


@pytest.mark.parametrize("pairs", [64, 2], ids=["in a program", "in none"])
def test_a_step_that_was_laid_out_ahead_has_the_same_bits_and_others_do_not_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: int
) -> None:
    monkeypatch.setattr(cuda_backend, "PAIRS_PER_BLOCK", pairs)
    stepped = Stepped(tmp_path, "cuda")
    prompts = [prompt_of(18), prompt_of(33, seed=1)]
    parts = [cut(row, row.count - 1, 1) for row in stepped.rows(prompts, [MIX[0], MIX[3]])]
    stepped.run([head for head, _ in parts])
    both, one = [token for _, token in parts], [parts[0][1]]
    wanted = [stepped.compute(build(rows)) for rows in (both, one)]
    ahead = lay_out(both)
    stepped.backend.lay_out(ahead, stepped.bank)
    assert not ahead.ids.any()
    ahead.read_ids()
    assert torch.equal(stepped.compute(ahead), wanted[0])
    stepped.backend.lay_out(lay_out(both), stepped.bank)
    assert torch.equal(stepped.compute(build(one)), wanted[1])


def test_more_slots_than_a_captured_step_has_room_for_are_computed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_backend, "PAIRS_PER_BLOCK", 2)
    stepped = Stepped(tmp_path, "cuda")
    (row,) = stepped.rows([prompt_of(6)], [MIX[3]])
    head, token = cut(row, 5, 1)
    stepped.run([head])
    assert_close(stepped.run([token])[0], expected("llama", prompt_of(6), stepped.stacks, MIX[3])[-1:], 1e-4)


def test_a_stack_of_more_experts_than_a_captured_step_has_room_for_is_computed_all_the_same(
    tmp_path: Path,
) -> None:
    stepped = Stepped(tmp_path, "cuda")
    assert isinstance(stepped.backend, CudaBackend)
    config = stack_config(rank=1, experts=20, top_k=2)
    stepped.stacks["crowd"] = random_stack(stepped.base.identity.dims, 7, config=config)
    stepped.bank.add("crowd", stepped.stacks["crowd"])
    (row,) = stepped.rows([prompt_of(6)], [{"crowd": 0.5}])
    head, token = cut(row, 5, 1)
    stepped.run([head])
    wanted = expected("llama", prompt_of(6), stepped.stacks, {"crowd": 0.5})
    assert_close(stepped.run([token])[0], wanted[-1:], 1e-4)
    assert stepped.backend._programs == {}


def test_no_room_for_graphs_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Stepped(tmp_path, "cuda").backend
    assert isinstance(made, CudaBackend)

    def no_room(rows: int, composed: bool) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(made, "_new_program", no_room)
    with pytest.raises(ConfigError, match=r"no room for CUDA graphs of 16 rows.*--no-cuda-graphs"):
        made._capture_all()


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_angles_that_depend_on_the_length_are_refused_by_name(tmp_path: Path, rope: str) -> None:
    parameters: dict[str, Any] = {"rope_type": rope, "rope_theta": 1e4, "factor": 2.0}
    if rope == "longrope":
        parameters |= {
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 64,
        }
    with pytest.raises(ConfigError, match=f"the backend cuda does not compute 'base': .*{rope}"):
        Stepped(tmp_path, "cuda", rope_parameters=parameters)


def test_hidden_states_are_those_of_the_base_alone(tmp_path: Path) -> None:
    stepped = Stepped(tmp_path, "cuda")
    found = stepped.hidden_states(build(stepped.rows([prompt_of(33), prompt_of(9)], [MIX[0]] * 2)))
    for prompt, states in zip(
        (prompt_of(33), prompt_of(9)), zip(*(s.split([33, 9]) for s in found), strict=True), strict=True
    ):
        with torch.no_grad():
            plain = decoder_states(tiny_model(), input_ids=torch.tensor([prompt]))
        for state, wanted in zip(states, plain, strict=True):
            torch.testing.assert_close(state, wanted[0], atol=1e-4, rtol=1e-4)


def test_deterministic_rows_have_the_same_bits_whatever_is_beside_them(tmp_path: Path) -> None:
    # Whole vectors in every row: of what is left over, PyTorch's activation on a CPU rounds otherwise.
    stepped = Stepped(tmp_path, "torch", intermediate_size=64)
    config = EngineConfig(backend="cuda", deterministic=True, max_batch_size=3)
    stepped.backend = backend.choose(
        stepped.base, CompositionHooks(stepped.base.sites), stepped.new_cache, config
    )
    weights: list[Weights] = [MIX[0], MIX[4], {}]
    rows = stepped.rows([prompt_of(8), prompt_of(20, seed=1), prompt_of(5, seed=2)], weights)
    last = []
    for row in rows:
        head, token = cut(row, row.count - 1, 1)
        stepped.compute(build([head], 3))
        last.append(token)
    together = stepped.compute(build(last, 3))
    batch = build(last, 3)
    for row in last:
        alone = stepped.compute(build([row], 3))
        assert torch.equal(alone[0], together[batch.rows.index(row)])


def test_programs_are_for_few_numbers_of_rows() -> None:
    assert buckets(EngineConfig(max_batch_size=20)) == [1, 2, 4, 8, 16, 20]
    assert buckets(EngineConfig(max_batch_size=1)) == [1]
    assert buckets(EngineConfig(max_batch_size=64, deterministic=True)) == [64]


def test_compositions_change_and_the_program_stays(tmp_path: Path) -> None:
    stepped = Stepped(tmp_path, "cuda")
    assert isinstance(stepped.backend, CudaBackend)
    (row,) = stepped.rows([prompt_of(6)], [MIX[0]])
    head, token = cut(row, 5, 1)
    stepped.run([head])
    stepped.run([token])
    programs = dict(stepped.backend._programs)
    for weights in (MIX[1], MIX[2], MIX[3]):
        token.completion.weights = weights
        stepped.run([token])
    assert {key: stepped.backend._programs[key] for key in programs} == programs
    assert len(stepped.backend._programs) == 2  # with deltas and without


def test_the_backend_is_for_a_gpu_and_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from brainstacks.gpu_kernels import launch

    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(ConfigError, match="the backend cuda computes on a GPU, and the base is on cpu"):
        Stepped(tmp_path, "cuda")
