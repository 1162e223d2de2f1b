"""Versions stay on the device while they are served or used, and leave when they are neither."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from brainstacks.base_model import BaseModel
from brainstacks.errors import DomainNotFound
from brainstacks.layers.bank import StackBank
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.residency import Residency
from tests.tiny import publish_stack, random_stack


@pytest.fixture
def publish(tiny_base: BaseModel, registry: Registry, tmp_path: Path):  # type: ignore[no-untyped-def]
    def run(domain: str, seed: int) -> None:
        publish_stack(
            registry, tiny_base.identity, domain, random_stack(tiny_base.identity.dims, seed), tmp_path
        )

    for seed, domain in enumerate(("chat", "code", "math")):
        run(domain, seed)
    return run


@pytest.fixture
def residency(publish: object, registry: Registry, tiny_base: BaseModel) -> Residency:
    made = Residency(registry, tiny_base)
    made.sync()
    return made


def settle(residency: Residency) -> None:
    """Wait for what a release has left to the worker."""
    residency.settle()


def resident(residency: Residency) -> set[object]:
    return set(residency.bank.keys)


def test_sync_serves_every_active_version_in_the_registrys_order(residency: Residency) -> None:
    assert list(residency.serving) == ["chat", "code", "math"]
    assert resident(residency) == {("chat", 1), ("code", 1), ("math", 1)}
    assert residency.problems == ()


def test_a_version_in_use_stays_until_its_last_user_is_done(residency: Residency, publish: object) -> None:
    first, second = residency.acquire(["math"]), residency.acquire(["math", "chat"])
    assert residency.in_use("math") == 2
    publish("math", 9)  # type: ignore[operator]
    residency.sync()
    assert residency.serving["math"].version == 2
    assert ("math", 1) in resident(residency)
    residency.release(first.values())
    settle(residency)
    assert ("math", 1) in resident(residency)
    residency.release(second.values())
    settle(residency)
    assert resident(residency) == {("chat", 1), ("code", 1), ("math", 2)}
    assert residency.in_use("math") == residency.in_use("chat") == 0


def test_who_comes_after_a_publication_gets_the_new_version(residency: Residency, publish: object) -> None:
    old = residency.acquire(["math"])["math"]
    publish("math", 9)  # type: ignore[operator]
    residency.sync()
    new = residency.acquire(["math"])["math"]
    assert (old.version, new.version) == (1, 2)
    assert old.digest != new.digest
    assert residency.in_use("math") == 2


def test_a_deleted_domain_is_not_served_and_leaves_when_its_users_have(
    residency: Residency, registry: Registry
) -> None:
    used = residency.acquire(["math"])
    registry.delete("math", purge=True)
    residency.sync()
    assert "math" not in residency.serving
    with pytest.raises(DomainNotFound, match="'math'"):
        residency.acquire(["math"])
    assert ("math", 1) in resident(residency)
    residency.release(used.values())
    settle(residency)
    assert resident(residency) == {("chat", 1), ("code", 1)}


def test_acquiring_an_unknown_domain_pins_nothing(residency: Residency) -> None:
    with pytest.raises(DomainNotFound, match="served are: chat, code, math"):
        residency.acquire(["chat", "poetry"])
    assert residency.in_use("chat") == 0


def test_unloading_and_loading_again(residency: Residency) -> None:
    before = residency.bank.nbytes
    residency.unload("chat")
    assert list(residency.serving) == ["code", "math"]
    assert residency.bank.nbytes < before
    residency.load("chat")
    assert list(residency.serving) == ["chat", "code", "math"]
    assert residency.bank.nbytes == before
    with pytest.raises(DomainNotFound):
        residency.unload("poetry")
    with pytest.raises(DomainNotFound):
        residency.load("poetry")


def test_loading_a_newer_version_drops_the_older_one(residency: Residency, publish: object) -> None:
    publish("math", 9)  # type: ignore[operator]
    residency.load("math")
    assert resident(residency) == {("chat", 1), ("code", 1), ("math", 2)}


def test_a_damaged_version_is_a_problem_and_the_last_good_one_goes_on(
    residency: Residency, registry: Registry, publish: object
) -> None:
    publish("math", 9)  # type: ignore[operator]
    path = registry.blob_path(registry.snapshot().domain("math").current.digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(bytes(content))
    residency.sync()
    assert residency.serving["math"].version == 1
    assert len(residency.problems) == 1
    assert residency.problems[0].startswith("math version 2: ")
    registry.activate("math", 1)
    residency.sync()
    assert not residency.problems


def test_a_release_does_not_wait_for_a_change_that_is_packing(
    residency: Residency, registry: Registry, publish: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step thread releases; were it to wait, every stream would stand still while a stack is loaded."""
    used = residency.acquire(["math"])
    publish("math", 9)  # type: ignore[operator]
    plus, packing, go_on = StackBank.plus, threading.Event(), threading.Event()

    def slow(bank: StackBank, *args: object) -> StackBank:
        packing.set()
        go_on.wait(300)
        return plus(bank, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(StackBank, "plus", slow)
    change = threading.Thread(target=residency.sync)
    change.start()
    assert packing.wait(300)
    residency.release(used.values())  # would hang here
    assert residency.serving["math"].version == 1
    assert residency.acquire(["chat"])["chat"].version == 1
    go_on.set()
    change.join()
    settle(residency)
    assert resident(residency) == {("chat", 1), ("code", 1), ("math", 2)}


def test_a_forward_keeps_the_bank_that_it_started_with(residency: Residency, registry: Registry) -> None:
    bank = residency.bank
    registry.delete("math")
    residency.sync()
    assert ("math", 1) in bank.keys
    assert bank.bind([{("math", 1): 1.0}]).buckets


def test_without_a_registry_there_is_nothing_to_serve(tiny_base: BaseModel) -> None:
    residency = Residency(None, tiny_base)
    residency.sync()
    assert residency.serving == {}
    with pytest.raises(DomainNotFound, match="without a registry"):
        residency.load("chat")
