"""An engine, opened as the options say, and a process made ready to serve it."""

from __future__ import annotations

import dataclasses
import gc
import sys

from brainstacks.config import EngineConfig
from brainstacks.engine.interface import Engine
from server.settings import Settings

SWITCH_SECONDS = 0.0005
"""How long a thread keeps the interpreter while another wants it. A step gives it up hundreds of times, at
every operator; with Python's own 5 ms, an upload that the event loop takes in would hold up each of them."""


def engine_config(settings: Settings) -> EngineConfig:
    """The engine's part of `settings`."""
    fields = {field.name for field in dataclasses.fields(EngineConfig)}
    options = {name: value for name, value in settings.model_dump().items() if name in fields}
    return EngineConfig(**options)


def open_engine(settings: Settings, config: EngineConfig) -> Engine:
    """Load the base, the registry and the router; takes seconds to minutes."""
    # Imported here: `--help` and wrong options answer at once, without loading torch.
    from brainstacks.engine.async_engine import AsyncEngine
    from brainstacks.stacks.blob_cache import BlobCache

    engine: Engine = AsyncEngine.open(
        base=settings.base,
        registry=settings.registry,
        cache=BlobCache.of_user(settings.registry_cache, settings.registry_cache_bytes),
        quantization=settings.quantization,
        device=settings.device,
        device_map=settings.device_map,
        dtype=settings.dtype,
        config=config,
    )
    return engine


def settle() -> None:
    """Once the engine is there, before it is served.

    What was loaded lives as long as the process, and the collector need not look at it again: not while
    requests are served, nor at the end, where it would take seconds.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)
