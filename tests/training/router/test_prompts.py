"""Held-out prompts are nobody's training data, and prompts that no stack trained on come first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from brainstacks.base_model import BaseModel
from brainstacks.config import MetaRouterConfig
from brainstacks.errors import ConfigError
from brainstacks.layers.bank import StackBank
from brainstacks.layers.hooks import CompositionHooks
from brainstacks.routing.features import mixed_hidden_states, pad_prompts
from tests.training.examples import random_examples
from training.data.domains import DomainData
from training.data.records import Message, Record
from training.recipe.settings import RouterRecipe
from training.router.prompts import RouterPrompts, prompt_features, router_prompts
from training.router.stacked_base import StackedBase


def records(*prompts: str) -> list[Record]:
    return [Record(prompt, (Message("user", prompt),), "an answer") for prompt in prompts]


def prompts_of(
    base: BaseModel,
    train: Sequence[str],
    selection: Sequence[str],
    recipe: RouterRecipe,
    router: Sequence[str] = (),
) -> RouterPrompts:
    data = DomainData(
        "math", records(*train), records(*selection), [], (), {}, 0, (), router=records(*router)
    )
    return router_prompts({"math": data}, recipe, base.chat_tokenizer())["math"]


def test_held_out_prompts_are_selection_records_and_so_are_the_first_that_train(tiny_base: BaseModel) -> None:
    train, selection = [f"t{i}" for i in range(9)], [f"s{i}" for i in range(5)]
    recipe = RouterRecipe(prompts=6, held_out=2)
    found = prompts_of(tiny_base, train, selection, recipe)
    assert (len(found.train), len(found.held_out), found.unseen, found.left_out) == (6, 2, 3, 0)
    assert {e.id for e in (*found.held_out, *found.train[:3])} == set(selection)
    assert {e.id for e in found.train[3:]} <= set(train)
    assert found == prompts_of(tiny_base, train, selection, recipe)


def test_with_selection_records_enough_nothing_that_a_stack_trained_on_is_used(tiny_base: BaseModel) -> None:
    found = prompts_of(tiny_base, ["t"], [f"s{i}" for i in range(12)], RouterRecipe(prompts=6, held_out=2))
    assert (len(found.train), found.unseen) == (6, 6)
    assert "t" not in {e.id for e in found.train}


def test_prompts_that_are_not_measured_are_none_of_the_others(tiny_base: BaseModel) -> None:
    train, selection = [f"t{i}" for i in range(9)], [f"s{i}" for i in range(5)]
    found = prompts_of(tiny_base, train, selection, RouterRecipe(prompts=2, unmeasured=4, held_out=2))
    assert {e.id for e in (*found.held_out, *found.train, *found.unmeasured[:1])} == set(selection)
    assert {e.id for e in found.unmeasured[1:]} <= set(train)
    assert (len(found.unmeasured), found.unseen) == (4, 2)


def test_the_router_s_own_records_come_first_in_both(tiny_base: BaseModel) -> None:
    own, selection = [f"r{i}" for i in range(6)], [f"s{i}" for i in range(3)]
    found = prompts_of(tiny_base, ["t", "u"], selection, RouterRecipe(prompts=8, held_out=2), own)
    assert {e.id for e in (*found.held_out, *found.train[:4])} == set(own)
    assert {e.id for e in found.train[4:7]} == set(selection)
    assert (len(found.train), found.train[7].id in {"t", "u"}, found.unseen) == (8, True, 7)
    enough = prompts_of(tiny_base, ["t", "u"], selection, RouterRecipe(prompts=4, held_out=2), own)
    assert ({e.id for e in (*enough.held_out, *enough.train)}, enough.unseen) == (set(own), 4)


def test_what_one_domain_holds_out_no_domain_trains_on_however_it_is_spelt(tiny_base: BaseModel) -> None:
    asked = {
        "math": DomainData("math", records("a"), records("Same?"), [], (), {}, 0, ()),
        "chat": DomainData("chat", records("b"), records("same?", "c"), [], (), {}, 0, ()),
        "code": DomainData("code", records("d", "e"), records("f"), [], (), {}, 0, ()),
    }
    for seed in range(4):
        recipe = RouterRecipe(prompts=1, unmeasured=9, held_out=1, seed=seed)
        found = router_prompts(asked, recipe, tiny_base.chat_tokenizer())
        assert [e.id for e in found["math"].held_out] == ["Same?"]
        assert "same?" not in {e.id for e in (*found["chat"].train, *found["chat"].unmeasured)}


def test_what_some_stack_trains_on_no_domain_holds_out(tiny_base: BaseModel) -> None:
    asked = {
        "math": DomainData("math", records("Same?"), records("a"), [], (), {}, 0, ()),
        "chat": DomainData("chat", records("b"), records("same?", "c"), [], (), {}, 0, ()),
    }
    for seed in range(4):
        recipe = RouterRecipe(prompts=9, held_out=9, seed=seed)
        found = router_prompts(asked, recipe, tiny_base.chat_tokenizer())
        assert [e.id for e in found["chat"].held_out] == ["c"]
        assert "same?" in {e.id for e in found["chat"].train}


def test_prompts_as_long_as_the_window_are_left_out_and_counted(tiny_base: BaseModel) -> None:
    long = ["x" * 200, "y" * 200]
    found = prompts_of(tiny_base, ["t", long[0]], ["s", "u", long[1]], RouterRecipe(max_tokens=100))
    assert found.left_out == 2
    assert {e.id for e in (*found.train, *found.held_out)} == {"t", "s", "u"}
    assert all(e.response for e in (*found.train, *found.held_out))


@pytest.mark.parametrize(("train", "selection"), [(["t"], []), ([], ["s"]), (["t"], ["x" * 200])])
def test_nothing_to_hold_out_or_to_train_on_says_what_to_change(
    tiny_base: BaseModel, train: list[str], selection: list[str]
) -> None:
    with pytest.raises(
        ConfigError, match=r"math gives the router .* raise data\.router or data\.sel.*router\.max_t"
    ):
        prompts_of(tiny_base, train, selection, RouterRecipe(max_tokens=100))


def test_features_are_those_that_serving_reads_one_prompt_at_a_time(tiny_base: BaseModel) -> None:
    config = MetaRouterConfig(domains=("a",), token_dim=32, sequence_length=5)
    bank = StackBank(tiny_base.device, tiny_base.dtype)
    stacked = StackedBase(tiny_base, tiny_base.chat_tokenizer(), CompositionHooks(tiny_base.sites), bank, {})
    prompts = [e.prompt for e in random_examples(6)]
    for prompt, features in zip(prompts, prompt_features(config, stacked, prompts), strict=True):
        ids, _ = pad_prompts([prompt], 5, tiny_base.device)
        assert features.shape == (min(5, len(prompt)), 32)
        assert features.tolist() == [
            pytest.approx(row, abs=1e-5) for row in mixed_hidden_states(tiny_base.model, ids)[0].tolist()
        ]
