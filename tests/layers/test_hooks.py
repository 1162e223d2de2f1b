"""Hooks compose a whole model as the plain loops do, and leave no trace."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from brainstacks.base_model import load_base
from brainstacks.config import Quantization
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks, Correction, DeltaSource, LowRank
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.layers.projections import find_sites, projection_dims
from tests.tiny import FAMILIES, bank_of, plain_logits, random_stack, save_base, stack_config, tiny_model

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2]])


def composed(family: str = "llama") -> tuple[object, CompositionHooks, dict[str, StackTensors], StackBank]:
    model = tiny_model(family)
    sites = find_sites(model)
    hooks = CompositionHooks(sites)
    hooks.attach()
    stacks = {
        "a": random_stack(projection_dims(sites), 1, rounds=2),
        "b": random_stack(projection_dims(sites), 2),
        "c": random_stack(
            projection_dims(sites), 3, config=stack_config(rank=3, projections=("q_proj", "down_proj"))
        ),
    }
    return model, hooks, stacks, bank_of(stacks)


def forward(model: object, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits  # type: ignore[operator]
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_composed_model_equals_the_plain_loops_in_every_family(family: str) -> None:
    model, hooks, stacks, bank = composed(family)
    rows = [{"a": 0.8, "c": -0.5}, {"b": 1.0}]
    with hooks.composed(bank.bind(rows)):
        found = forward(model)
    untouched = tiny_model(family)
    for i, row in enumerate(rows):
        plain = plain_logits(untouched, IDS[i].tolist(), [(stacks[k], w) for k, w in row.items()])
        torch.testing.assert_close(found[i], plain, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain, plain_logits(untouched, IDS[i].tolist()), atol=1e-2)


@pytest.mark.parametrize("tokens", [1, 11])
def test_a_packed_row_through_the_compiled_loops_equals_the_plain_loops(tokens: int) -> None:
    model, hooks, stacks, bank = composed()
    row = {"a": 0.8, "b": 0.3, "c": -0.5}
    ids = IDS[:1, :tokens]
    with hooks.composed(bank.bind([row] * tokens, apart=True)):
        found = forward(model, ids)
    plain = plain_logits(tiny_model(), ids[0].tolist(), [(stacks[k], w) for k, w in row.items()])
    torch.testing.assert_close(found[0], plain, atol=1e-4, rtol=1e-4)


def test_a_zero_b_stack_and_a_row_without_stacks_are_the_base_bit_for_bit() -> None:
    model, hooks, stacks, bank = composed()
    base = forward(tiny_model())
    silent = StackTensors(
        stacks["a"].config, 2, {n: t * (not n.endswith("B")) for n, t in stacks["a"].tensors.items()}
    )
    with hooks.composed(bank_of({"z": silent}).bind([{"z": 1.0}] * 2)):
        assert torch.equal(forward(model), base)
    with hooks.composed(bank.bind([{"a": 1.0, "b": 1.0}, {}])):
        mixed = forward(model)
    assert torch.equal(mixed[1], base[1])
    assert not torch.equal(mixed[0], base[0])


def test_outside_a_block_attached_hooks_pass_the_bases_own_output_through() -> None:
    model, hooks, _, bank = composed()
    base = forward(tiny_model())
    assert torch.equal(forward(model), base)
    with hooks.composed(bank.bind([{"a": 1.0}] * 2)):
        forward(model)
    assert torch.equal(forward(model), base)


def test_detach_restores_the_base_and_its_weights_bit_for_bit() -> None:
    model, hooks, _, bank = composed()
    fresh = tiny_model()
    with hooks.composed(bank.bind([{"a": 1.0, "b": 0.5}] * 2)):
        forward(model)
        hooks.detach()
        assert torch.equal(forward(model), forward(fresh))
    assert all(not m._forward_hooks for m in model.modules())  # type: ignore[attr-defined]
    weights = dict(fresh.named_parameters())
    for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
        assert torch.equal(parameter, weights[name]), name


def test_attaching_twice_applies_a_delta_once() -> None:
    model, hooks, _, bank = composed()
    with hooks.composed(bank.bind([{"a": 1.0}] * 2)):
        once = forward(model)
        hooks.attach()
        assert torch.equal(forward(model), once)


def test_an_inner_block_replaces_the_outer_one_and_gives_it_back_even_after_an_error() -> None:
    model, hooks, _, bank = composed()
    with hooks.composed(bank.bind([{"a": 1.0}] * 2)):
        outer = forward(model)
        with hooks.composed():
            assert torch.equal(forward(model), forward(tiny_model()))
        assert torch.equal(forward(model), outer)
        with pytest.raises(ValueError, match="inner"), hooks.composed():
            raise ValueError("inner")
        assert torch.equal(forward(model), outer)


def test_several_sources_add_up() -> None:
    model, hooks, _, bank = composed()
    with hooks.composed(bank.bind([{"a": 0.7, "b": 0.4}] * 2)):
        together = forward(model)
    with hooks.composed(bank.bind([{"a": 0.7}] * 2), bank.bind([{"b": 0.4}] * 2)):
        torch.testing.assert_close(forward(model), together, atol=1e-5, rtol=1e-5)


class Watcher(DeltaSource):
    """A source that remembers, weakly, every input it was shown, and how often."""

    def __init__(self, inner: DeltaSource) -> None:
        self.inner = inner
        self.inputs: list[weakref.ref[Tensor]] = []
        self.calls: list[tuple[int, int]] = []

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        self.inputs.append(weakref.ref(x))
        self.calls.append((layer, group))
        return self.inner.corrections(layer, group, x)


def test_no_hidden_activation_outlives_its_layer() -> None:
    model, hooks, _, bank = composed()
    watcher = Watcher(bank.bind([{"a": 1.0}] * 2))
    alive_at_the_end: list[int] = []
    last = find_sites(model)[1, "down_proj"].module  # type: ignore[arg-type]
    handle = last.register_forward_hook(
        lambda *_: alive_at_the_end.append(sum(r() is not None for r in watcher.inputs[:-2]))
    )
    with hooks.composed(watcher):
        forward(model)
        gc.collect()
        assert all(r() is None for r in watcher.inputs)
    handle.remove()
    assert len(watcher.inputs) == 8
    # While the last projection runs, the model's own frames hold only the MLP's input.
    assert alive_at_the_end == [0]


def test_projections_with_one_input_share_one_pass_through_the_source() -> None:
    model, hooks, _, bank = composed()
    watcher = Watcher(bank.bind([{"a": 1.0}] * 2))
    with hooks.composed(watcher):
        forward(model)
    assert watcher.calls == [(layer, group) for layer in range(2) for group in range(4)]


def test_a_forward_that_fails_leaves_nothing_behind_for_the_next_one() -> None:
    model, hooks, _, bank = composed()

    class Failing(DeltaSource):
        def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
            if (layer, group) == (1, 2):
                raise RuntimeError("out of memory")
            return bank.bind([{"a": 1.0}] * 2).corrections(layer, group, x)

    with pytest.raises(RuntimeError, match="out of memory"), hooks.composed(Failing()):
        forward(model)
    assert torch.equal(forward(model), forward(tiny_model()))


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_pass_every_family_however_it_is_quantised(
    tmp_path: Path, family: str, quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantised linears give views, biases and all; the plain sum is what the in-place one must equal.

    In float32, whatever the CPU: an error in bfloat16 depends on how its matmul sums.
    """
    directory = save_base(tmp_path / family, family, hidden_size=64, intermediate_size=128, head_dim=16)
    base = load_base(directory, quantization=quantization, device="cpu", dtype=torch.float32)
    hooks = CompositionHooks(base.sites)
    hooks.attach()
    bank = bank_of({"a": random_stack(base.identity.dims, 1, size=0.1)}, base.dtype)
    random = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 4, 64, generator=random) * 0.1

    class Trained(DeltaSource):
        def __init__(self) -> None:
            self.down = down.clone().requires_grad_()

        def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
            hidden = torch.nn.functional.linear(x, self.down) if group == 1 else None
            return {} if hidden is None else {"o_proj": [LowRank(hidden, up)]}

    def gradient() -> Tensor:
        trained = Trained()
        with hooks.composed(bank.bind([{"a": 1.0}]), trained):
            base.model(input_ids=IDS, use_cache=False).logits.square().mean().backward()
        found: Tensor | None = trained.down.grad
        assert found is not None
        return found

    fast = gradient()
    monkeypatch.setattr(LowRank, "__call__", lambda self, output: output + self.hidden @ self.up)
    slow = gradient()
    assert float(slow.abs().max()) > 0
    # int8 rounds activations: a sum's last bit may tip one of them over, by 1/127 of the largest in its row.
    tolerance = 1e-2 if quantization == "int8" else 1e-5
    assert float((fast - slow).norm()) <= tolerance * float(slow.norm())
