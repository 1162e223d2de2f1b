"""Options that are the engine's own: each sets the field of `EngineConfig` that has its name."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings

from brainstacks.config import Backend, EngineConfig


class EngineSettings(BaseSettings):
    """A part of `Settings`."""

    backend: Backend = Field(
        default=EngineConfig.backend,
        description="what computes steps: cpu and cuda are compiled, torch runs anywhere; auto takes the "
        "fastest",
    )
    cuda_graphs: bool = Field(
        default=EngineConfig.cuda_graphs,
        description="decode on a GPU by CUDA graphs, which are captured at the start; else launch by launch",
    )
    exact: bool = Field(
        default=EngineConfig.exact,
        description="compute with the very values of quantised weights, where a CPU would use int8",
    )
    deterministic: bool = Field(
        default=EngineConfig.deterministic,
        description="the same answer bit for bit, whatever else is in the batch; costs speed",
    )
    max_batch_size: int = Field(
        default=EngineConfig.max_batch_size, ge=1, description="most sequences that one step advances"
    )
    max_queue: int = Field(
        default=EngineConfig.max_queue,
        ge=1,
        description="most sequences (prompts x n) that wait; further ones get 429",
    )
    max_context: int | None = Field(
        default=EngineConfig.max_context,
        ge=1,
        description="most tokens of prompt + completion; the base's own",
    )
    max_prefill_tokens: int = Field(
        default=EngineConfig.max_prefill_tokens, ge=1, description="most prompt tokens that one step computes"
    )
    max_router_batch: int = Field(
        default=EngineConfig.max_router_batch, ge=1, description="most prompts that one router pass reads"
    )
    kv_cache_tokens: int | None = Field(
        default=EngineConfig.kv_cache_tokens,
        ge=1,
        description="KV memory in tokens; 131072, or what half of the free memory holds; a share of a GPU's",
    )
    prefix_caching: bool = Field(
        default=EngineConfig.prefix_caching,
        description="reuse the keys and values of earlier prompts of the same composition",
    )
    device_stack_bytes: int | None = Field(
        default=EngineConfig.device_stack_bytes,
        ge=0,
        description="most bytes of stacks on the device; every stack when left out, on a GPU a share of it",
    )
    host_stack_bytes: int = Field(
        default=EngineConfig.host_stack_bytes,
        ge=0,
        description="most bytes of packed stacks in host memory, for those that the device has no room for",
    )
    max_unread_events: int = Field(
        default=EngineConfig.max_unread_events,
        ge=1,
        description="a stream whose client leaves this many events unread pauses until they are read",
    )
    routing_records: int = Field(
        default=EngineConfig.routing_records, ge=1, description="how many recent routing records are kept"
    )
