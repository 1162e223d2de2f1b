"""A base whose layers lie on several devices: a whole step on GPUs that compute nothing mixes none of them,
and in two parts on the CPU it gives the very bits of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.instruments.fake_gpu import FakeGpu
from brainstacks.base_model import load_base
from brainstacks.composed_model import ComposedModel
from brainstacks.config import EngineConfig
from brainstacks.device_map import Part
from brainstacks.engine.engine import StepEngine
from brainstacks.engine.request import CompositionRequest
from brainstacks.engine.runner import backend
from brainstacks.engine.runner.batch import build
from brainstacks.engine.runner.kv_cache import new_cache
from brainstacks.errors import ConfigError
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from tests.engine.driving import fixed, prompt_of, request, run, serve
from tests.engine.runner.test_fake_gpu_step import MIXED, PROMPTS, packed
from tests.engine.stepped import LENGTHS, MIX, Stepped, cut
from tests.tiny import FAMILIES, random_stack, stack_config, tiny_config

LAYERS = 4
SHAPES = {"one": (2, 3, 2), "lora": (5, 1, 1), "wide": (40, 4, 2)}


class Moves(TorchDispatchMode):
    """Notes each copy from one GPU to another, and its shape."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[tuple[int, int, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [one for one in tree_leaves(args) if isinstance(one, torch.Tensor)]
        if given and isinstance(result, torch.Tensor) and given[0].device != result.device:
            before, after = given[0].device, result.device
            if before.type == after.type:
                self.seen.append((before.index, after.index, tuple(result.shape)))
        return result


class Spread:
    """The torch backend over two GPUs that compute nothing, three of four layers on the second."""

    def __init__(self, family: str, *counts: int) -> None:
        self.gpu = FakeGpu()
        # Else a single number from the host would be copied in earnest, to a device that is not there.
        self.gpu.mode.may_turn_const = lambda t: False  # type: ignore[method-assign]
        kind, first = self.gpu.device.type, 0
        parts = []
        for number, count in enumerate(counts or (1, 3)):
            parts.append(Part(torch.device(kind, number), range(first, first + count)))
            first += count
        changes: dict[str, Any] = {"num_hidden_layers": LAYERS}
        if family.startswith("gemma"):
            changes["layer_types"] = ["sliding_attention", "full_attention"] * 2
        self.base = self.gpu.base(tiny_config(family, **changes), torch.float32, tuple(parts))
        self.hooks = CompositionHooks(self.base.sites)
        self.hooks.attach()
        with self.gpu.on():
            config = EngineConfig(max_batch_size=8)
            self.backend = backend.choose(self.base, self.hooks, new_cache(self.base, 40), config)
            self.bank = self.filled(StackBank(self.base.device, torch.float32, parts=self.base.parts))

    def filled(self, bank: StackBank) -> StackBank:
        for name, (r, n, k) in SHAPES.items():
            config = stack_config(rank=r, experts=n, top_k=k, layers=LAYERS)
            bank.add(name, random_stack(self.base.identity.dims, 0, rounds=2, config=config))
        return bank

    def step(self, rows: Any) -> tuple[torch.Tensor, Moves]:
        with self.gpu.on(), Moves() as moves:
            return self.backend.run(packed(rows), self.bank), moves


@pytest.fixture(params=[*FAMILIES, "gemma2"])
def spread(request: pytest.FixtureRequest) -> Spread:
    return Spread(request.param)


# --- placement, on GPUs that compute nothing ------------------------------------------------------


@pytest.mark.parametrize("rows", [MIXED, PROMPTS, (*MIXED, *PROMPTS)], ids=["decode", "prefill", "both"])
def test_a_step_mixes_no_devices_and_its_logits_are_where_ids_came_in(spread: Spread, rows: Any) -> None:
    logits, _ = spread.step(rows)
    assert logits.device == spread.base.device


def test_weights_stacks_keys_and_values_are_on_their_layers_device(spread: Spread) -> None:
    for part in spread.base.parts:
        for layer in part.layers:
            stacks = [spread.bank.resident(name).stack for name in SHAPES]
            held = [stack.down[layer, group] for stack in stacks for group in range(4)]
            held += [stack.up[layer, "down_proj"] for stack in stacks]
            held += [spread.backend.cache.keys[layer], spread.backend.cache.values[layer]]
            modules = [spread.base.sites[layer, name].module for name in ("q_proj", "down_proj")]
            held += [weight for module in modules for weight in module.parameters()]
            assert {tensor.device for tensor in held} == {part.device}, layer


def test_hidden_states_of_the_router_come_to_the_first_device(spread: Spread) -> None:
    with spread.gpu.on():
        mid, last = spread.backend.hidden_states(packed(PROMPTS))
    assert mid.device == last.device == spread.base.device


def test_hidden_states_go_once_over_each_boundary_and_once_back() -> None:
    spread = Spread("llama", 1, 2, 1)
    _, moves = spread.step(MIXED)
    wide = [(before, after) for before, after, shape in moves.seen if shape == (1, 3, 32)]
    assert wide == [(0, 1), (1, 2), (2, 0)]
    angles = [(before, after) for before, after, shape in moves.seen if shape == (1, 3, 8)]
    assert angles == [(0, 1)] * 2 + [(0, 2)] * 2, "cosines and sines once a part, not once a layer"


@pytest.mark.parametrize("what", ["stacks", "keys and values", "connections"])
def test_what_lies_on_the_wrong_device_is_noticed(what: str) -> None:
    """What the tests above rest on."""
    spread = Spread("llama")
    with spread.gpu.on():
        if what == "stacks":
            spread.bank = spread.filled(StackBank(spread.base.device, torch.float32))
        elif what == "keys and values":
            one = replace(spread.base, device_map=())
            cache = new_cache(one, 40)(type(spread.backend.cache))
            spread.backend.cache = cache
        else:
            for layer in spread.base.model.get_decoder().layers:
                layer._forward_pre_hooks.clear()
                layer._forward_pre_hooks_with_kwargs.clear()
    with pytest.raises(RuntimeError, match="device"):
        spread.step(MIXED)


# --- which backend --------------------------------------------------------------------------------


def test_torch_computes_over_several_devices_and_says_why() -> None:
    spread = Spread("llama")
    assert spread.backend.name == "torch (gpu:0, gpu:1)"
    on_cpu = two_parts(spread.base)
    chosen = backend.choose(on_cpu, spread.hooks, lambda layout: spread.backend.cache, EngineConfig())
    said = "the backend cpu computes on one device, and the base's layers are in 2 parts, on cpu"
    assert chosen.reason == said


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_compiled_backends_refuse_several_devices(name: Any) -> None:
    spread = Spread("llama")
    with pytest.raises(ConfigError, match=f"the backend {name} computes on one device.*--backend torch"):
        backend.choose(
            spread.base,
            spread.hooks,
            lambda layout: spread.backend.cache,
            EngineConfig(backend=name),
        )


# --- values, in two parts on the CPU --------------------------------------------------------------


def two_parts(base: Any) -> Any:
    cpu = torch.device("cpu")
    parts = (Part(cpu, range(1)), Part(cpu, range(1, base.identity.layers)))
    return replace(base, device=cpu, device_map=parts)


@pytest.mark.parametrize(
    ("family", "quantization"),
    [("llama", "none"), ("gemma3_text", "none"), ("llama", "nf4"), ("llama", "int8")],
)
def test_two_parts_give_the_very_bits_of_one_device(tmp_path: Path, family: str, quantization: Any) -> None:
    one = Stepped(tmp_path / "one", "torch", family, quantization)
    two = Stepped(tmp_path / "two", "torch", family, quantization, device_map="cpu,cpu")
    assert [part.layers for part in two.base.parts] == [range(1), range(1, 2)]
    assert len(one.base.parts) == 1
    found = []
    for stepped in (one, two):
        rows = stepped.rows([prompt_of(length) for length in LENGTHS], MIX)
        heads = [cut(row, row.count - 1, 1) if row.count > 1 else [row] for row in rows]
        logits = stepped.run([pieces[0] for pieces in heads])
        logits += stepped.run([pieces[1] for pieces in heads if len(pieces) > 1])
        found.append([*logits, *stepped.hidden_states(build(rows))])
    for plain, split in zip(*found, strict=True):
        assert torch.equal(plain, split)


def test_an_engine_over_two_parts_answers_and_routes_as_over_one(tmp_path: Path) -> None:
    answers, routes = [], []
    for number, devices in enumerate((None, "cpu,cpu")):
        (made := tmp_path / str(number)).mkdir()
        served = serve(made, router=True, late=["math"], backend="torch", device_map=devices)
        asked = [
            request("fixed", prompt_of(20), fixed(chat=1.0, math=0.5)),
            request("base", prompt_of(7)),
            request("routed", prompt_of(12), CompositionRequest("routed")),
        ]
        found = run(served.engine, *asked)
        answers.append([one.ids() for one in found])
        routes.append(found[2].routed.routing.probabilities)
    assert answers[0] == answers[1]
    assert routes[0] == routes[1]


def test_python_users_may_name_several_devices(tiny_directory: Path) -> None:
    plain = load_base(tiny_directory, quantization="none", device="cpu", dtype=torch.float32)
    one = ComposedModel(StepEngine(plain, None, EngineConfig(backend="torch")))
    two = ComposedModel.load(tiny_directory, quantization="none", device_map="cpu,cpu", dtype="float32")
    assert (len(one.base.parts), len(two.base.parts)) == (1, 2)
    assert torch.equal(one.logits([3, 1, 4]), two.logits([3, 1, 4]))
    assert torch.equal(one.router_features([3, 1, 4]), two.router_features([3, 1, 4]))
