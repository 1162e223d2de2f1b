"""Hostile 35: what belongs to a tenant is nothing to the others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from brainstacks.engine.request import CompositionRequest, GenerationRequest
from tests.engine.async_driving import Running, collect, stream
from tests.engine.driving import fixed, prompt_of, request, run, serve

pytestmark = pytest.mark.usefixtures("each_backend")


def of(tenant: str, name: str, composition: CompositionRequest, length: int = 70) -> GenerationRequest:
    return replace(request(name, prompt_of(length), composition), tenant=tenant)


@pytest.mark.parametrize(
    "composition", [CompositionRequest("base"), CompositionRequest("routed"), fixed(chat=1.0)]
)
def test_a_prompt_that_another_tenant_sent_is_computed_anew(
    tmp_path: Path, composition: CompositionRequest
) -> None:
    """Also where the router's pass has left its keys and values."""
    engine = serve(tmp_path, router=True).engine
    run(engine, of("one", "a", composition))
    before = engine.gauges.prompt_tokens_reused
    (first,) = run(engine, of("two", "b", composition))
    assert engine.gauges.prompt_tokens_reused == before
    (second,) = run(engine, of("two", "c", composition))
    assert engine.gauges.prompt_tokens_reused > before, "its own it does reuse"
    assert second.text() == first.text()


def test_side_by_side_two_tenants_share_no_prefix_either(tmp_path: Path) -> None:
    engine = serve(tmp_path).engine
    base = CompositionRequest("base")
    run(engine, *(of(tenant, f"{tenant}-{i}", base) for i in range(2) for tenant in ("one", "two")))
    run(engine, of("three", "x", base))
    alone = serve(tmp_path / "alone").engine
    for tenant in ("one", "two", "three"):
        run(alone, *(of(tenant, f"{tenant}-{i}", base) for i in range(2 if tenant != "three" else 1)))
    assert engine.gauges.prompt_tokens_reused <= alone.gauges.prompt_tokens_reused


@pytest.mark.anyio
async def test_two_tenants_may_use_one_request_id_at_one_time(running: Running) -> None:
    base = CompositionRequest("base")
    ours, theirs = of("one", "job", base), of("two", "job", fixed(math=1.0))
    texts = await asyncio.gather(*(collect(stream(running.engine, each)) for each in (ours, theirs)))
    assert all(texts)
    status = running.engine.status
    assert status.routing_record("job", "one").mode == "base"
    assert status.routing_record("job", "two").mode == "fixed"
    assert {record.tenant for record in status.routing_records()} == {"one", "two"}
    assert await running.idle()
