"""Keep a new stack out of what earlier ones use: the null-space projection (paper, section 3.5).

On the output side a delta is trained as

    delta' = delta - (delta V) V^T             V: [d_out, K] orthonormal

with V the principal directions of what the frozen stacks write at that projection. As delta = hidden @ up,
that is `up' = up - (up V) V^T` on the small matrix: the same projection folds into the weights at freeze,
inference needs nothing, and the dense P = V V^T is never formed. It limits where the new stack writes, not
what later layers make of it. On the input side V [d_in, K] spans what earlier domains' tokens hold, and
`A' = A - (A V) V^T` keeps the experts from reading it; gates stay as they are, for they only select.

The directions are those of a randomized SVD of all deltas, or inputs, of the measured tokens, as in the
paper, but without collecting them, and of the tokens that the new stack acts on. Sums are float64: a Gram
matrix squares the singular values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from brainstacks.config import Applies
from brainstacks.errors import ConfigError
from brainstacks.layers.hooks import CompositionHooks, Correction, DeltaSource, LowRank
from training.data.batches import Batch, by_length, collate
from training.data.encoding import Example
from training.recipe.settings import NullSpaceConfig

Place = tuple[int, int | str]
"""(layer, projection) on the output side, (layer, index into `INPUT_GROUPS`) on the input side."""

NEGLIGIBLE = 1e-6
"""A direction whose singular value is at most this share of the largest is rounding, and is not kept."""


@dataclass(frozen=True)
class NullSpace:
    """The directions that a new stack must not write, or read.

    Attributes:
        bases: place -> V [d, K] float32, orthonormal columns, on the base's device; K may differ.
        measurement: how they were measured, as JSON values.
    """

    side: Literal["output", "input"]
    bases: Mapping[Place, Tensor]
    measurement: Mapping[str, Any]

    def project_up(self, layer: int, projection: str, up: Tensor) -> Tensor:
        """up - (up V) V^T, for up [C, d_out], in its dtype; `up` itself where nothing is to be avoided."""
        return self._project((layer, projection), up)

    def project_down(self, layer: int, group: int, A: Tensor) -> Tensor:
        """A - (A V) V^T, for A [R, d_in], in its dtype; `A` itself where nothing is to be avoided."""
        return self._project((layer, group), A)

    def _project(self, place: Place, rows: Tensor) -> Tensor:
        if place not in self.bases:
            return rows
        wide = torch.promote_types(rows.dtype, torch.float32)
        V = self.bases[place].to(wide)
        return (rows.to(wide) - (rows.to(wide) @ V) @ V.T).to(rows.dtype)

    def facts(self) -> dict[str, Any]:
        """What a stack's metadata says of the projection that was folded into it, as JSON values.

        `captured_energy` is the share of what was measured that lies in the directions, over all places;
        on the input side it is estimated, never too high.
        """
        kept = [V.shape[1] for V in self.bases.values()]
        directions = {"min": min(kept), "mean": sum(kept) / len(kept), "max": max(kept)}
        return {"side": self.side, "directions": directions, **self.measurement}

    def to_tensors(self) -> dict[str, Tensor]:
        """`<layer>.<projection or group>` -> V. With `facts`, all that `from_tensors` needs."""
        return {f"{layer}.{part}": V for (layer, part), V in self.bases.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> NullSpace:
        """The null space that gave `to_tensors` and `facts`, on the device of `tensors`."""
        bases: dict[Place, Tensor] = {}
        for name, V in tensors.items():
            layer, _, part = name.partition(".")
            bases[int(layer), int(part) if part.isdigit() else part] = V
        measurement = {name: fact for name, fact in facts.items() if name not in ("side", "directions")}
        return cls(facts["side"], bases, measurement)


@torch.no_grad()
def measure_examples(
    model: Any,
    hooks: CompositionHooks,
    sources: Sequence[DeltaSource],
    examples: Sequence[Example],
    config: NullSpaceConfig,
    applies: Applies,
    domains: Sequence[str],
) -> NullSpace:
    """`measure` over `examples`, which are batched by length."""
    batches = [collate(group) for group in by_length(examples, batch_size=16)]
    return measure(model, hooks, sources, batches, config, applies, domains)


def measure(
    model: Any,
    hooks: CompositionHooks,
    sources: Sequence[DeltaSource],
    batches: Sequence[Batch],
    config: NullSpaceConfig,
    applies: Applies,
    domains: Sequence[str] = (),
) -> NullSpace:
    """The K = `config.directions` principal directions at every place, over the tokens of `batches`.

    Args:
        model: the base, a causal language model of transformers.
        hooks: attached to `model`.
        config: its `samples` are the caller's to take.
        applies: where the new stack acts; other tokens it neither reads nor writes on.
        sources: the frozen stacks, all on at 1.0, for batches of any number of rows.
        batches: of the earlier `domains`; read once (output side) or iterations + 1 times (input side).

    Raises:
        ConfigError: there was nothing to measure.
    """

    def run(recorder: _Recorder) -> None:
        for batch in batches:
            here = batch.to(model.device)
            recorder.measured = here.acted_on(applies)
            with hooks.composed(recorder, responses=here.responses):
                model.get_decoder()(input_ids=here.input_ids, position_ids=here.position_ids, use_cache=False)

    output = config.side == "output"
    factors = _factor_deltas(sources, run) if output else _factor_inputs(sources, run, config)
    bases, captured = {}, []
    for place, factor, energy in factors:
        V, values = _principal(factor, config)
        if V.shape[1] > 0:
            bases[place] = V.float()
            captured.append(float(values.square().sum() / energy))
    if not bases:
        raise ConfigError(
            f"null_space: no {config.side} directions of earlier domains, over {len(batches)} batches; "
            "give it selection records of them, or leave null_space out"
        )
    measurement = {
        "captured_energy": {"min": min(captured), "mean": sum(captured) / len(captured)},
        "domains": list(domains),
        "samples": sum(batch.examples for batch in batches),
        "tokens": sum(int(batch.acted_on(applies).sum()) for batch in batches),
        "oversampling": config.oversampling,
        "iterations": config.iterations,
        "seed": config.seed,
    }
    return NullSpace(config.side, bases, measurement)


Factors = Iterator[tuple[Place, Tensor, Tensor]]
"""place, F [d, m], energy: F F^T is the sum of z z^T over the measured vectors z [d], or nearly and then
less, and energy the sum of |z|^2. One place at a time: all F together would be larger than the stacks."""


def _factor_deltas(sources: Sequence[DeltaSource], run: Callable[[_Recorder], None]) -> Factors:
    """With delta = h @ up and sum h^T h = W diag(l) W^T, exactly F = up^T W diag(sqrt l).

    The paper collects the deltas, tokens x d_out at every projection. This takes one pass as well, and
    C x C memory, with C the columns of all frozen stacks together.
    """
    writes = _Writes(sources)
    run(writes)
    for place, gram in writes.grams.items():
        values, W = torch.linalg.eigh(gram)
        F = torch.cat(writes.ups[place]).double().T @ (W * values.clamp(min=0).sqrt())
        yield place, F, F.square().sum()


def _factor_inputs(
    sources: Sequence[DeltaSource], run: Callable[[_Recorder], None], config: NullSpaceConfig
) -> Factors:
    """Subspace iteration on M = sum x^T x, which is never formed, and a Nystrom factor from its last pass.

    With Q orthonormal, Y = M Q and Q^T Y = W diag(l) W^T, F = Y W diag(l^-1/2): F F^T is what a randomized
    SVD of the inputs, sketched by Q, approximates M by.
    """
    reads = _Reads(sources, config.directions + config.oversampling, config.seed)
    run(reads)
    for _ in range(config.iterations):
        reads.iterate()
        run(reads)
    for place, Y in reads.products.items():
        small = reads.sketches[place].T @ Y
        values, W = torch.linalg.eigh((small + small.T) / 2)
        inverse = torch.where(values > NEGLIGIBLE**2 * values[-1], values.rsqrt(), 0.0)
        yield place, Y @ (W * inverse), reads.energies[place]


def _principal(factor: Tensor, config: NullSpaceConfig) -> tuple[Tensor, Tensor]:
    """The leading left singular vectors [d, K] of `factor` [d, m], at most those it has, and their values."""
    q = min(config.directions + config.oversampling, *factor.shape)
    with torch.random.fork_rng(devices=[factor.device] if factor.is_cuda else []):
        torch.manual_seed(config.seed)
        U, values, _ = torch.svd_lowrank(factor, q=q, niter=config.iterations)
    kept = values[: config.directions] > NEGLIGIBLE * values[0]
    return U[:, : len(kept)][:, kept], values[: len(kept)][kept]


class _Recorder(DeltaSource, ABC):
    """A `DeltaSource` that passes on the corrections of `sources`, and sums what goes by.

    Attributes:
        measured: [B, T] bool, the tokens of the batch at hand that are summed.
    """

    measured: Tensor

    def __init__(self, sources: Sequence[DeltaSource]) -> None:
        self._sources = self._acting = sources

    def on(self, responses: Tensor) -> _Recorder:
        self._acting = [source.on(responses) for source in self._sources]
        return self

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        found: dict[str, list[Correction]] = {}
        for source in self._acting:
            for projection, corrections in source.corrections(layer, group, x).items():
                found.setdefault(projection, []).extend(corrections)
        self.record(layer, group, x, found)
        return found

    @abstractmethod
    def record(self, layer: int, group: int, x: Tensor, found: Mapping[str, Sequence[Correction]]) -> None:
        """See the input [B, T, d_in] of one group, and the corrections of its projections."""


class _Writes(_Recorder):
    """Of each projection: sum h^T h [C, C], all stacks' columns side by side, and up, [c, d_out] of each."""

    def __init__(self, sources: Sequence[DeltaSource]) -> None:
        super().__init__(sources)
        self.grams: dict[Place, Tensor] = {}
        self.ups: dict[Place, list[Tensor]] = {}

    def record(self, layer: int, group: int, x: Tensor, found: Mapping[str, Sequence[Correction]]) -> None:
        for projection, corrections in found.items():
            deltas = [_whole(correction) for correction in corrections]
            h = torch.cat([delta.hidden[self.measured] for delta in deltas], dim=-1).double()
            place = (layer, projection)
            if place not in self.grams:
                self.grams[place] = h.new_zeros(h.shape[-1], h.shape[-1])
                self.ups[place] = [delta.up for delta in deltas]
            self.grams[place].addmm_(h.T, h)


def _whole(correction: Correction) -> LowRank:
    if not isinstance(correction, LowRank) or correction.rows is not None:
        raise TypeError(f"directions are measured on sources that give whole LowRanks, not {correction!r}")
    return correction


class _Reads(_Recorder):
    """Of each input group: Y = sum x^T (x Q) [d_in, q], for a sketch Q, and sum |x|^2.

    Args:
        width: most columns of Q.
        seed: of the first sketches.
    """

    def __init__(self, sources: Sequence[DeltaSource], width: int, seed: int) -> None:
        super().__init__(sources)
        self.sketches: dict[Place, Tensor] = {}
        self.products: dict[Place, Tensor] = {}
        self.energies: dict[Place, Tensor] = {}
        self._width = width
        self._random = torch.Generator().manual_seed(seed)

    def record(self, layer: int, group: int, x: Tensor, found: Mapping[str, Sequence[Correction]]) -> None:
        x = x[self.measured].double()
        place, d_in = (layer, group), x.shape[-1]
        if place not in self.sketches:
            draw = torch.randn(d_in, min(self._width, d_in), generator=self._random, dtype=torch.float64)
            self.sketches[place] = torch.linalg.qr(draw).Q.to(x.device)
        if place not in self.products:
            self.products[place] = torch.zeros_like(self.sketches[place])
            self.energies[place] = x.new_zeros(())
        self.products[place].addmm_(x.T, x @ self.sketches[place])
        self.energies[place] += x.square().sum()

    def iterate(self) -> None:
        """The products, made orthonormal, are the sketches of another pass."""
        self.sketches = {place: torch.linalg.qr(Y).Q for place, Y in self.products.items()}
        self.products = {}
