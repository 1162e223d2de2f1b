"""The routing signature in a stack file: by what a router that never met the domain knows its prompts.

    signature.centre      [2, d]      prompts of no domain, on the mean
    signature.mean        [2, d]      the domain's prompts, seen from there
    signature.spread      [K, 2, d]   the directions in which they differ from each other
    signature.distances   [2]         how far they are from that, by it: mean and standard deviation

All F32, beside weights of any dtype. `brainstacks/routing/signature.py` computes with them. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator

from brainstacks.config import Quantization, SignatureConfig
from brainstacks.errors import IncompatibleArtifact

SIGNATURE = "signature."
"""What the names of its tensors begin with."""


def signature_shapes(config: SignatureConfig | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a signature; none where there is none."""
    if config is not None:
        d = config.width
        yield f"{SIGNATURE}centre", (2, d)
        yield f"{SIGNATURE}mean", (2, d)
        yield f"{SIGNATURE}spread", (config.directions, 2, d)
        yield f"{SIGNATURE}distances", (2,)


def check_width(config: SignatureConfig | None, hidden_size: int) -> None:
    """Raises IncompatibleArtifact: the signature was made of other hidden states than the base's."""
    if config is not None and config.width != hidden_size:
        raise IncompatibleArtifact(
            f"the stack's signature is of hidden states of width {config.width}; the base in use has "
            f"{hidden_size}; publish a stack that was trained on the base in use"
        )


def holds(made: Quantization, used: Quantization) -> bool:
    """Whether a signature of a base in one quantisation holds for the base in another: NF4 moves prompts by
    more than they differ within a domain, what other quantisations do is little."""
    return (made == "nf4") == (used == "nf4")


def check_holds(config: SignatureConfig, quantization: Quantization) -> None:
    """Raises IncompatibleArtifact: it does not hold."""
    if not holds(config.quantization, quantization):
        raise IncompatibleArtifact(
            f"it was made on a base in {config.quantization}, and the base in use is in {quantization}, "
            f"where prompts look otherwise; sign the stack again (brainstacks-train sign, with quantization: "
            f"{quantization} in the recipe), or hold the base as it was"
        )
