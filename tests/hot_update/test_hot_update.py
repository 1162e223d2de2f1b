"""Adapters that are published, replaced and removed under load never answer for one another.

Each test is a bug that some server with hot-loaded adapters has had. To hold another server to them:

    HOT_UPDATE_SERVER=package.module:Class python -m pytest tests/hot_update
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import pytest

from tests.hot_update.adapters import Adapters, Brainstacks

pytestmark = pytest.mark.slow

PROMPT = "The quick brown fox jumps over the lazy dog, and then once more, and once more after that."
"""Longer than a block of a prefix cache, so that something could be kept of it."""
TOKENS, LONG = 16, 160


@pytest.fixture(scope="module")
def server() -> Iterator[Adapters]:
    chosen = os.environ.get("HOT_UPDATE_SERVER")
    if chosen:
        module, _, name = chosen.partition(":")
        opened: Adapters = getattr(import_module(module), name)()
    else:
        opened = Brainstacks()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def answers(server: Adapters) -> list[str]:
    """What each adapter answers to `PROMPT`, under a name of its own that nothing was served under before."""
    found = []
    for which in range(2):
        server.publish(f"reference-{which}", which)
        found.append(server.complete(server.model(f"reference-{which}"), PROMPT, TOKENS))
    assert len({*found, server.complete(server.base, PROMPT, TOKENS)}) == 3, (
        "they must differ to be told apart"
    )
    return found


def test_a_replaced_adapter_answers_at_once_for_a_prompt_that_was_seen_before(
    server: Adapters, answers: list[str]
) -> None:
    """A stale prefix: keys and values of the old adapter under the new one."""
    model = server.model("replaced")
    for which in (0, 1, 0):
        server.publish("replaced", which)
        for _ in range(2):
            assert server.complete(model, PROMPT, TOKENS) == answers[which]


def test_a_name_that_is_removed_is_gone_and_comes_back_as_what_is_published_then(
    server: Adapters, answers: list[str]
) -> None:
    """An unload that does not unload, or that leaves the base to answer."""
    model = server.model("removed")
    server.publish("removed", 0)
    assert server.complete(model, PROMPT, TOKENS) == answers[0]
    server.remove("removed")
    with pytest.raises(KeyError):
        server.complete(model, PROMPT, TOKENS)
    server.publish("removed", 1)
    assert server.complete(model, PROMPT, TOKENS) == answers[1]


def test_a_name_that_was_never_published_is_refused(server: Adapters) -> None:
    """Names that silently mean the base."""
    with pytest.raises(KeyError):
        server.complete(server.model("nobody"), PROMPT, TOKENS)


def test_a_prompt_is_computed_anew_for_every_adapter(server: Adapters, answers: list[str]) -> None:
    """Keys and values of one adapter, or of the base, reused by another."""
    base = server.complete(server.base, PROMPT, TOKENS)
    for _ in range(2):
        assert server.complete(server.model("reference-0"), PROMPT, TOKENS) == answers[0]
        assert server.complete(server.base, PROMPT, TOKENS) == base
        assert server.complete(server.model("reference-1"), PROMPT, TOKENS) == answers[1]


def test_adapters_and_the_base_side_by_side_answer_as_alone(server: Adapters, answers: list[str]) -> None:
    """Rows of a batch that get each other's adapter."""
    wanted = {
        server.model("reference-0"): answers[0],
        server.model("reference-1"): answers[1],
        server.base: server.complete(server.base, PROMPT, TOKENS),
    }
    models = [*wanted] * 6
    with ThreadPoolExecutor(len(models)) as pool:
        found = list(pool.map(lambda model: server.complete(model, PROMPT, TOKENS), models))
    assert found == [wanted[model] for model in models]


@pytest.mark.parametrize("change", ["replace", "remove"])
def test_a_running_answer_keeps_the_adapter_that_it_began_with(server: Adapters, change: str) -> None:
    """A request that is changed under its feet."""
    name = f"running-{change}"
    server.publish(name, 0)
    alone = server.complete(server.model(name), PROMPT, LONG)
    pieces = server.stream(server.model(name), PROMPT, LONG)
    text = next(pieces)
    if change == "replace":
        server.publish(name, 1)
    else:
        server.remove(name)
    assert text + "".join(pieces) == alone


def test_adapters_that_are_swapped_under_load_answer_as_one_of_the_two_never_as_a_mixture(
    server: Adapters, answers: list[str]
) -> None:
    """A swap that a request sees half of."""
    server.publish("swapped", 0)
    model = server.model("swapped")
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(server.complete, model, PROMPT, TOKENS) for _ in range(24)]
        for which in (1, 0, 1, 0, 1):
            server.publish("swapped", which)
        assert {one.result() for one in asked} <= set(answers)
    assert server.complete(model, PROMPT, TOKENS) == answers[1]
