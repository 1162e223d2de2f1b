"""Names of a text decoder's linears, whatever training, a checkpoint or a larger model has wrapped it in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from brainstacks.config import PROJECTIONS

Note = Callable[[str], None]

_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Of parallel training, `torch.compile` and checkpointing."""
_PEFT = "base_model.model."

_BLOCKS = {"self_attn": PROJECTIONS[:4], "mlp": PROJECTIONS[4:]}
_LINEARS = "|".join(rf"{block}\.(?:{'|'.join(names)})" for block, names in _BLOCKS.items())
_TEXT = re.compile(
    rf"(?P<prefix>(?:(?:base_model|model|language_model|text_model)\.)*layers\.)(?P<layer>\d{{1,9}})\.(?:{_LINEARS})"
)
_OTHER_TOWER = re.compile(r"(?:^|\.)(?:vision|visual|audio|multi_modal)[a-z_]*\.")


@dataclass(frozen=True)
class ModuleName:
    """The name of a linear in a text decoder.

    Attributes:
        prefix: up to the number of the layer, `model.layers.`.
    """

    prefix: str
    layer: int
    projection: str

    @classmethod
    def parse(cls, name: str) -> ModuleName | None:
        """None where `name` is of something else than one of the seven projections."""
        match = _TEXT.fullmatch(name)
        return match and cls(match["prefix"], int(match["layer"]), name.rpartition(".")[2])

    def __str__(self) -> str:
        block = next(block for block, names in _BLOCKS.items() if self.projection in names)
        return f"{self.prefix}{self.layer}.{block}.{self.projection}"


def unwrapped(name: str) -> str:
    """`name` as the base itself has it."""
    name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    while name.startswith(_PEFT):
        name = name.removeprefix(_PEFT)
    return name


def is_of_another_tower(name: str) -> bool:
    """Whether it is of vision or audio layers, which have no part in text serving."""
    return _OTHER_TOWER.search(name) is not None


def note_dropped(what: str, count: int, note: Note) -> None:
    """Say that so many tensors of `what` were of other towers."""
    if count:
        note(f"{what}: dropped {count} tensors of vision or audio layers, which text serving has no use for")
