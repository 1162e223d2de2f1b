"""Serve and compose frozen MoE-LoRA domain stacks on one 4-bit base (arXiv 2604.01152)."""

from typing import TYPE_CHECKING, Any

from brainstacks.cpu import hide_features

if TYPE_CHECKING:
    from brainstacks.composed_model import ComposedModel
    from brainstacks.routing.policy import Route

__all__ = ["ComposedModel", "Route"]

hide_features()  # before anything imports torch or numba


def __getattr__(name: str) -> Any:
    """Load the public face on first use: the registry's command line and `server` import without torch."""
    if name in __all__:
        from brainstacks import composed_model
        from brainstacks.routing import policy

        return getattr(composed_model if name == "ComposedModel" else policy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
