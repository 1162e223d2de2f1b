"""What a base is, as far as stacks and routers depend on it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BaseIdentity:
    """What a base is, as far as stacks and routers depend on it.

    Attributes:
        id: its name, for people.
        fingerprint: hash of its weights, independent of how they are quantised.
        architecture: of its configuration, such as `LlamaForCausalLM`.
        layers: number of decoder layers.
        dims: projection -> (d_in, d_out).
        hidden_size: width of its hidden states.
    """

    id: str
    fingerprint: str
    architecture: str
    layers: int
    dims: Mapping[str, tuple[int, int]]
    hidden_size: int

    @property
    def ref(self) -> BaseRef:
        """The part that files carry."""
        return BaseRef(self.id, self.fingerprint, self.architecture)


@dataclass(frozen=True)
class BaseRef:
    """The base that a file was trained on."""

    id: str
    fingerprint: str
    architecture: str
