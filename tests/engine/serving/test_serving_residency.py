"""With less room than stacks: who is on the device, who makes room, and what never fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainstacks.base_model import BaseModel
from brainstacks.config import EngineConfig
from brainstacks.engine.serving.serving import Serving
from brainstacks.errors import ArtifactTooLarge, Conflict, CorruptBlob, DomainNotFound, InvalidRequest
from brainstacks.layers.bank import StackBank
from brainstacks.layers.packed_stack import PackedStack, Shape
from brainstacks.stacks.artifact import STACK, read_stack_metadata
from brainstacks.stacks.registry import Registry
from brainstacks.stacks.tensors import load_stack
from tests.engine.serving_domains import Publish, damage, resident
from tests.tiny import random_stack, write_stack


@pytest.fixture
def unit(registry: Registry, publish: Publish, tiny_base: BaseModel) -> int:
    """Bytes on the device of a stack of one round."""
    path = registry.blob_path(registry.snapshot().domain("chat").current.digest)
    metadata = read_stack_metadata(path)
    return Shape.of(metadata.config, metadata.dims).nbytes(metadata.rounds, tiny_base.dtype)


@pytest.fixture
def tight(registry: Registry, tiny_base: BaseModel, unit: int) -> Serving:
    """Three domains; room for two on the device and for one on the host."""
    config = EngineConfig(device_stack_bytes=2 * unit, host_stack_bytes=unit)
    return Serving(tiny_base, registry, config)


def tiers(serving: Serving) -> list[str]:
    serving.cache.wait_for_loads()
    return [serving.cache.tier(domain) for domain in ("chat", "code", "math")]


def use(serving: Serving, *domains: str) -> None:
    lease = serving.cache.acquire(domains)
    lease.wait()
    serving.cache.release(lease)


def test_the_first_domains_that_fit_are_loaded_at_the_start_and_all_are_served(tight: Serving) -> None:
    assert list(tight.cache.serving) == ["chat", "code", "math"]
    assert tiers(tight) == ["device", "device", "disk"]
    assert tight.stack_problems == ()


def test_bytes_are_known_before_a_stack_is_loaded(registry: Registry, tight: Serving, unit: int) -> None:
    served = tight.cache.serving["chat"]
    tensors = load_stack(registry.blob_path(served.digest)).tensors
    stack = random_stack(served.metadata.dims, 0)
    assert set(stack.tensors) == set(tensors)
    assert PackedStack.pack(stack, tight.cache.bank.dtype).nbytes == served.nbytes == unit
    assert tight.cache.bank.nbytes == 2 * unit


def test_a_request_for_a_cold_stack_gets_it_and_the_coldest_leaves(tight: Serving, unit: int) -> None:
    use(tight, "chat")
    use(tight, "math")
    assert tiers(tight) == ["device", "host", "device"]
    use(tight, "code")
    assert tiers(tight) == ["host", "device", "device"]
    stats = tight.stats()
    assert stats.bytes["device"] == 2 * unit
    assert stats.bytes["disk"] == sum(r.published.bytes for r in tight.cache.serving.values())
    assert (stats.loads, stats.evictions["device"]) == ({"disk": 3, "host": 1}, 2)


def test_a_composition_that_cannot_fit_is_refused_and_pins_nothing(tight: Serving) -> None:
    with pytest.raises(InvalidRequest, match="--device-stack-bytes"):
        tight.cache.acquire(["chat", "code", "math"])
    assert tight.cache.in_use("chat") == 0


def test_a_stack_that_is_larger_than_the_device_is_a_problem_and_the_last_good_one_goes_on(
    tight: Serving, registry: Registry, publish: Publish, unit: int, tiny_base: BaseModel, tmp_path: Path
) -> None:
    publish("math", 9, 3)
    publish("law", 9, 3)
    tight.sync()
    assert tight.cache.serving["math"].version == 1
    assert "law" not in tight.cache.serving
    assert [problem.split(":")[0] for problem in tight.stack_problems] == ["math version 2", "law version 1"]
    assert all(f"{3 * unit} bytes" in p and f"is {2 * unit}" in p for p in tight.stack_problems)
    path = write_stack(
        tmp_path / "x", tiny_base.identity, "law", random_stack(tiny_base.identity.dims, 1, rounds=3)
    )
    with pytest.raises(ArtifactTooLarge):
        tight.candidates.receive(STACK.inspect(path, keep=True))


def test_replacing_a_version_keeps_within_the_budget(
    tight: Serving, publish: Publish, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, seen = StackBank.put, []

    def watched(bank: StackBank, *args: object) -> None:
        put(bank, *args)  # type: ignore[arg-type]
        seen.append(bank.nbytes)

    monkeypatch.setattr(StackBank, "put", watched)
    for seed in range(10, 14):
        publish("chat", seed)
        tight.sync()
        use(tight, "chat", "math")
    assert max(seen) <= 2 * unit
    assert resident(tight) == {("chat", 5), ("math", 1)}


def test_a_version_that_a_request_waits_for_survives_its_purge(
    tight: Serving, registry: Registry, unit: int
) -> None:
    held = tight.cache.acquire(["chat", "code"])
    waiting = tight.cache.acquire(["math"])
    versions = registry.snapshot().domain("math").versions
    registry.delete("math")
    tight.sync()
    tight.purge("math", versions)
    assert "math" not in tight.cache.serving
    tight.cache.release(held)
    waiting.wait()
    assert ("math", 1) in tight.cache.bank.keys
    assert registry.blob_path(versions[0].digest).exists()
    tight.cache.release(waiting)
    assert resident(tight) <= {("chat", 1), ("code", 1)}
    tight.purge("math", versions)  # waits for what was to go before
    with pytest.raises(CorruptBlob):
        registry.blob_path(versions[0].digest)


def test_a_file_that_is_damaged_under_the_server_fails_its_request_and_is_a_problem(
    tight: Serving, registry: Registry
) -> None:
    damage(registry, "math")
    lease = tight.cache.acquire(["math", "chat"])
    with pytest.raises(CorruptBlob):
        lease.wait()
    tight.cache.release(lease)
    assert [problem.split(":")[0] for problem in tight.stack_problems] == ["math version 1"]
    use(tight, "chat")


def test_a_pin_keeps_a_stack_on_the_device_and_follows_its_new_version(
    tight: Serving, publish: Publish
) -> None:
    tight.pin("math")
    for domain in ("chat", "code", "chat"):
        use(tight, domain)
        assert tight.cache.tier("math") == "device"
    assert "math" in tight.cache.pinned
    publish("math", 9)
    tight.sync()
    tight.load("math")
    for domain in ("chat", "code"):
        use(tight, domain)
    assert ("math", 2) in resident(tight)
    tight.unpin("math")
    use(tight, "chat", "code")
    assert tiers(tight) == ["device", "device", "host"]


def test_a_pin_that_does_not_fit_is_refused(tight: Serving) -> None:
    tight.pin("chat")
    tight.pin("code")
    with pytest.raises(Conflict, match="beside the pinned chat, code"):
        tight.pin("math")
    assert "math" not in tight.cache.pinned
    with pytest.raises(InvalidRequest, match="pinned"):
        tight.cache.acquire(["math"])


def test_a_pin_of_what_cannot_be_loaded_is_given_up(tight: Serving, registry: Registry) -> None:
    damage(registry, "math")
    with pytest.raises(CorruptBlob):
        tight.pin("math")
    assert "math" not in tight.cache.pinned


def test_a_deleted_domain_is_not_pinned_when_it_comes_back(
    tight: Serving, registry: Registry, publish: Publish
) -> None:
    tight.pin("math")
    registry.delete("math")
    tight.sync()
    publish("math", 9)
    tight.sync()
    assert "math" not in tight.cache.pinned


def test_what_is_in_use_or_pinned_is_not_evicted(tight: Serving) -> None:
    held = tight.cache.acquire(["chat"])
    with pytest.raises(Conflict, match="in use"):
        tight.evict("chat")
    tight.cache.release(held)
    tight.evict("chat")
    tight.evict("chat")
    assert tiers(tight) == ["host", "device", "disk"]
    tight.pin("code")
    with pytest.raises(Conflict, match="pinned"):
        tight.evict("code")


def test_loading_brings_a_stack_to_the_device(tight: Serving) -> None:
    tight.load("math")
    assert tight.cache.tier("math") == "device"


@pytest.mark.parametrize("verb", ["pin", "unpin", "evict", "load", "unload"])
def test_a_domain_that_is_not_there_is_said_to_be_missing(tight: Serving, verb: str) -> None:
    with pytest.raises(DomainNotFound, match="poetry"):
        getattr(tight, verb)("poetry")
