"""Versions are served from where they are, stay while they are used, and leave when they are neither."""

from __future__ import annotations

import threading

import pytest

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.serving.serving import Serving
from brainstacks.errors import DomainNotFound
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack
from brainstacks.stacks.registry import Registry
from tests.engine.serving_domains import Publish, damage, resident


def test_sync_serves_every_active_version_in_the_registrys_order(serving: Serving) -> None:
    assert list(serving.cache.serving) == ["chat", "code", "math"]
    assert resident(serving) == {("chat", 1), ("code", 1), ("math", 1)}
    assert serving.stack_problems == ()


def test_a_version_in_use_stays_until_its_last_user_is_done(serving: Serving, publish: Publish) -> None:
    first, second = serving.cache.acquire(["math"]), serving.cache.acquire(["math", "chat"])
    assert serving.cache.in_use("math") == 2
    publish("math", 9)
    serving.sync()
    assert serving.cache.serving["math"].version == 2
    assert ("math", 1) in resident(serving)
    serving.cache.release(first)
    assert ("math", 1) in resident(serving)
    serving.cache.release(second)
    assert resident(serving) == {("chat", 1), ("code", 1), ("math", 2)}
    assert serving.cache.in_use("math") == serving.cache.in_use("chat") == 0


def test_who_comes_after_a_publication_gets_the_new_version(serving: Serving, publish: Publish) -> None:
    old = serving.cache.acquire(["math"]).stacks["math"]
    publish("math", 9)
    serving.sync()
    new = serving.cache.acquire(["math"]).stacks["math"]
    assert (old.version, new.version) == (1, 2)
    assert old.digest != new.digest
    assert serving.cache.in_use("math") == 2


def test_a_deleted_domain_is_not_served_and_leaves_when_its_users_have(
    serving: Serving, registry: Registry
) -> None:
    used = serving.cache.acquire(["math"])
    registry.delete("math", purge=True)
    serving.sync()
    assert "math" not in serving.cache.serving
    with pytest.raises(DomainNotFound, match="'math'"):
        serving.cache.acquire(["math"])
    assert ("math", 1) in resident(serving)
    serving.cache.release(used)
    assert resident(serving) == {("chat", 1), ("code", 1)}


def test_acquiring_an_unknown_domain_pins_nothing(serving: Serving) -> None:
    with pytest.raises(DomainNotFound, match="served are: chat, code, math"):
        serving.cache.acquire(["chat", "poetry"])
    assert serving.cache.in_use("chat") == 0


def test_unloading_and_loading_again(serving: Serving) -> None:
    before = serving.cache.bank.nbytes
    serving.unload("chat")
    assert list(serving.cache.serving) == ["code", "math"]
    assert serving.cache.bank.nbytes < before
    serving.load("chat")
    assert list(serving.cache.serving) == ["chat", "code", "math"]
    assert serving.cache.bank.nbytes == before
    with pytest.raises(DomainNotFound):
        serving.unload("poetry")
    with pytest.raises(DomainNotFound):
        serving.load("poetry")


def test_loading_a_newer_version_drops_the_older_one(serving: Serving, publish: Publish) -> None:
    publish("math", 9)
    serving.load("math")
    assert resident(serving) == {("chat", 1), ("code", 1), ("math", 2)}


def test_a_damaged_version_is_a_problem_and_the_last_good_one_goes_on(
    serving: Serving, registry: Registry, publish: Publish
) -> None:
    publish("math", 9)
    damage(registry, "math")
    serving.sync()
    assert serving.cache.serving["math"].version == 1
    assert len(serving.stack_problems) == 1
    assert serving.stack_problems[0].startswith("math version 2: ")
    registry.activate("math", 1)
    serving.sync()
    assert not serving.stack_problems


def test_a_release_does_not_wait_for_a_stack_that_is_being_packed(
    serving: Serving, registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step thread releases; were it to wait, every stream would stand still while a stack is loaded."""
    used = serving.cache.acquire(["math"])
    publish("math", 9)
    place, packing, go_on = StackBank.place, threading.Event(), threading.Event()

    def slow(bank: StackBank, stack: PackedStack) -> PackedStack:
        packing.set()
        assert go_on.wait(300)
        return place(bank, stack)

    monkeypatch.setattr(StackBank, "place", slow)
    change = threading.Thread(target=serving.sync)
    change.start()
    assert packing.wait(300)
    serving.cache.release(used)  # would hang here
    assert serving.cache.serving["math"].version == 1, "and nobody waits for the new one"
    assert serving.cache.acquire(["chat", "math"]).ready
    go_on.set()
    change.join()
    assert serving.cache.serving["math"].version == 2
    assert ("math", 2) in resident(serving)


def test_without_a_registry_there_is_nothing_to_serve(tiny_base: BaseModel) -> None:
    serving = Serving(tiny_base, None, EngineConfig())
    assert serving.cache.serving == {}
    with pytest.raises(DomainNotFound, match="without a registry"):
        serving.load("chat")


def test_a_purge_of_what_nobody_uses_frees_the_disk_at_once(serving: Serving, registry: Registry) -> None:
    before, versions = registry.total_bytes(), registry.snapshot().domain("math").versions
    registry.delete("math")
    serving.sync()
    serving.purge("math", versions)
    assert registry.total_bytes() == before - versions[0].bytes
