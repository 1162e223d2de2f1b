"""The public face: composed logits, loading in any order, routing and generation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch

from brainstacks import ComposedModel
from brainstacks.base_model import identify_base
from brainstacks.errors import (
    BrainstacksError,
    ConfigError,
    ContextTooLong,
    DomainNotFound,
    InvalidRequest,
)
from brainstacks.layers.packed_stack import StackTensors
from brainstacks.stacks.registry import Registry
from tests.tiny import (
    byte_tokenizer,
    plain_greedy,
    plain_logits,
    publish_stack,
    random_stack,
    stack_config,
    tiny_model,
    write_router,
)

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1, 8, 2, 8, 1, 8]])
DOMAINS = ("chat", "code", "math")
Stacks = dict[str, StackTensors]


@pytest.fixture
def stacks(registry: Registry, tiny_directory: Path, tmp_path: Path) -> Stacks:
    """Three published stacks, of different shapes, and a router over them."""
    base = identify_base(tiny_directory)
    made = {
        "chat": random_stack(base.dims, 1, rounds=2),
        "code": random_stack(base.dims, 2),
        "math": random_stack(base.dims, 3, config=stack_config(rank=3, experts=4)),
    }
    for domain, stack in made.items():
        publish_stack(registry, base, domain, stack, tmp_path)
    registry.publish_router(write_router(tmp_path / "router.safetensors", registry, base))
    return made


@pytest.fixture
def model(stacks: Stacks, tiny_directory: Path, tmp_path: Path) -> ComposedModel:
    return load(tiny_directory, tmp_path / "registry")


def load(base: Path, registry: Path | None) -> ComposedModel:
    return ComposedModel.load(base, registry, quantization="none", device="cpu", dtype="float32")


def test_logits_equal_the_plain_loops_row_by_row(model: ComposedModel, stacks: Stacks) -> None:
    assert model.domains == DOMAINS
    rows = [{"chat": 0.85, "math": -0.6}, {"code": 1.2}]
    logits = model.logits(IDS, rows)
    assert logits.dtype == torch.float32
    for i, row in enumerate(rows):
        plain = plain_logits(tiny_model(), IDS[i].tolist(), [(stacks[d], w) for d, w in row.items()])
        torch.testing.assert_close(logits[i], plain, atol=1e-4, rtol=1e-4)


def test_the_base_alone_is_bit_for_bit_the_base(model: ComposedModel) -> None:
    with torch.no_grad():
        base = tiny_model()(IDS, use_cache=False).logits
    assert torch.equal(model.logits(IDS), base)
    assert torch.equal(model.logits(IDS, {}), base)
    assert torch.equal(model.logits(IDS, {"chat": 0.12}), base), "the gate: |weight| <= 0.12 is off"
    assert not torch.equal(model.logits(IDS, {"chat": 0.13}), base)


def test_ungated_is_every_domain_at_one(model: ComposedModel) -> None:
    assert torch.equal(model.logits(IDS, "ungated"), model.logits(IDS, dict.fromkeys(DOMAINS, 1.0)))


def test_routed_applies_the_routes_weights_to_each_row(model: ComposedModel) -> None:
    rows = [model.route(row) for row in IDS]
    routed = model.logits(IDS, "routed")
    assert torch.equal(routed, model.logits(IDS, [r.weights for r in rows]))
    assert any(r.active for r in rows)


def test_a_flat_list_of_ids_is_one_row(model: ComposedModel) -> None:
    assert torch.equal(model.logits([3, 1, 4]), model.logits([[3, 1, 4]]))
    assert model.router_features([3, 1, 4]).shape == (1, 3, 32)


@pytest.mark.parametrize("order", list(itertools.permutations(DOMAINS)))
def test_every_order_of_loading_and_unloading_gives_the_logits_of_a_fresh_load(
    model: ComposedModel, order: tuple[str, ...]
) -> None:
    weights = {"chat": 0.85, "code": -0.5, "math": 0.91}
    fresh = model.logits(IDS, weights)
    only = {domain: model.logits(IDS, {domain: 1.0}) for domain in DOMAINS}
    for domain in order:
        model.unload_stack(domain)
        assert domain not in model.domains
        for left in model.domains:
            torch.testing.assert_close(model.logits(IDS, {left: 1.0}), only[left], atol=1e-5, rtol=1e-5)
    assert not set(model.domains)
    for i, domain in enumerate(order):
        model.load_stack(domain)
        assert set(model.domains) == set(order[: i + 1])
        torch.testing.assert_close(model.logits(IDS, {domain: 1.0}), only[domain], atol=1e-5, rtol=1e-5)
    assert model.domains == DOMAINS, "the registry's order, whatever the order of loading"
    torch.testing.assert_close(model.logits(IDS, weights), fresh, atol=1e-5, rtol=1e-5)


def test_loading_what_is_loaded_changes_nothing(model: ComposedModel) -> None:
    before = model.logits(IDS, "ungated")
    model.load_stack("code")
    assert torch.equal(model.logits(IDS, "ungated"), before)


def test_unknown_domains_and_weights_are_refused_and_pin_nothing(model: ComposedModel) -> None:
    with pytest.raises(InvalidRequest, match="'poetry'"):
        model.logits(IDS, {"poetry": 1.0})
    with pytest.raises(InvalidRequest, match="'poetry'"):
        model.logits(IDS, [{"chat": 1.0}, {"poetry": 1.0}])
    assert model._engine.stacks.in_use("chat") == 0
    with pytest.raises(InvalidRequest, match="1 entries for 2 rows"):
        model.logits(IDS, [{"chat": 1.0}])
    with pytest.raises(InvalidRequest, match="'gated'"):
        model.logits(IDS, "gated")  # type: ignore[arg-type]
    with pytest.raises(DomainNotFound, match="poetry"):
        model.load_stack("poetry")
    with pytest.raises(DomainNotFound, match="poetry"):
        model.unload_stack("poetry")


def test_generate_equals_greedy_over_plain_logits(model: ComposedModel, stacks: Stacks) -> None:
    prompts = ["hi", "a longer question, é included"]
    weights = [{"chat": 1.0}, {"math": 0.7, "code": 0.4}]
    texts = model.generate(prompts, weights, max_tokens=12, temperature=0.0)
    tokenizer = byte_tokenizer()
    for prompt, row, text in zip(prompts, weights, texts, strict=True):
        ids = model.base.chat_tokenizer().encode_chat([{"role": "user", "content": prompt}])
        plain = plain_greedy(tiny_model(), ids, 12, [(stacks[d], w) for d, w in row.items()])
        assert text == tokenizer.decode(plain, skip_special_tokens=True)
    assert model.generate(prompts[0], weights[0], max_tokens=12, temperature=0.0) == texts[0]


def test_attribution_is_the_plain_log_probability_under_each_composition(
    model: ComposedModel, stacks: Stacks
) -> None:
    prompt, completion, weights = [3, 1, 4, 1, 5], [9, 2, 6], {"chat": 0.85, "math": -0.6, "code": 0.1}
    tokens = model.attribute([prompt], completion, weights)
    assert [token.token_id for token in tokens] == completion

    def plain(row: Mapping[str, float]) -> list[float]:
        chosen = [(stacks[d], w) for d, w in row.items()]
        logprobs = plain_logits(tiny_model(), [*prompt, *completion], chosen).log_softmax(-1)
        return [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(completion)]

    close = partial(pytest.approx, abs=1e-4)
    assert [token.base for token in tokens] == close(plain({}))
    assert [token.composed for token in tokens] == close(plain({"chat": 0.85, "math": -0.6}))
    assert [token.without["chat"] for token in tokens] == close(plain({"math": -0.6}))
    assert [token.without["math"] for token in tokens] == close(plain({"chat": 0.85}))
    assert set(tokens[0].without) == {"chat", "math"}, "the gate holds: |weight| <= 0.12 is off"
    with pytest.raises(InvalidRequest, match="at least one token"):
        model.attribute([prompt], [], weights)


def test_a_text_can_be_taken_as_it_is(model: ComposedModel) -> None:
    prompt, tokenizer = "once upon a time", model.base.chat_tokenizer()
    plain = model.generate(prompt, None, chat=False, max_tokens=8, temperature=0.0)
    ids = [tokenizer.encode(prompt)]
    assert [plain] == model.generate(ids, None, max_tokens=8, temperature=0.0)
    assert plain != model.generate(prompt, None, max_tokens=8, temperature=0.0)


def test_generate_routes_unless_told_otherwise(model: ComposedModel) -> None:
    route = model.route("hello")
    routed = model.generate("hello", max_tokens=8, temperature=0.0)
    assert routed == model.generate("hello", route.weights, max_tokens=8, temperature=0.0)


def test_a_refused_prompt_takes_none_of_its_batch_in(model: ComposedModel) -> None:
    with pytest.raises(ContextTooLong, match="512"):
        model.generate(["fine", "x" * 600], None, max_tokens=4)
    assert len(model.generate(["fine", "also fine"], None, max_tokens=4, temperature=0.0)) == 2
    with pytest.raises(ConfigError, match="heat"):
        model.generate("fine", heat=1.0)


def test_without_a_registry_there_is_the_base_and_no_route(tiny_directory: Path) -> None:
    model = load(tiny_directory, None)
    assert model.domains == ()
    assert torch.equal(model.logits(IDS), model.logits(IDS, "ungated"))
    with pytest.raises(InvalidRequest, match="no meta-router"):
        model.route([1, 2, 3])
    with pytest.raises(DomainNotFound, match="without a registry"):
        model.load_stack("chat")


def test_a_damaged_stack_refuses_the_load_by_name(
    stacks: Stacks, registry: Registry, tiny_directory: Path, tmp_path: Path
) -> None:
    path = registry.blob_path(registry.snapshot().domain("code").current.digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(content))
    with pytest.raises(BrainstacksError, match="code version 1"):
        load(tiny_directory, tmp_path / "registry")


def test_logits_of_a_stack_that_applies_to_the_response_begin_where_it_is_said(
    registry: Registry, tiny_directory: Path, tmp_path: Path
) -> None:
    base = identify_base(tiny_directory)
    stack = random_stack(base.dims, 1, config=stack_config(applies="response"))
    publish_stack(registry, base, "chat", stack, tmp_path)
    model = load(tiny_directory, tmp_path / "registry")
    for start, firsts in ((None, (7, 7)), (3, (2, 2)), ([1, 8], (0, 7))):
        logits = model.logits(IDS, {"chat": 0.5}, response_start=start)
        for row, ids, first in zip(logits, IDS.tolist(), firsts, strict=True):
            plain = plain_logits(tiny_model(), ids, [(stack, 0.5, first)])
            torch.testing.assert_close(row, plain, atol=2e-4, rtol=0)
    for start in (0, 9, [1], [1, 2, 3]):
        with pytest.raises(InvalidRequest, match="response_start"):
            model.logits(IDS, {"chat": 0.5}, response_start=start)
