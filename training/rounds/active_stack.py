"""The round that is being trained: zero deltas at first, a noisy gate, and a balance loss that reaches it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainstacks.config import StackConfig
from brainstacks.layers.delta import gated_hidden
from brainstacks.layers.hooks import Correction, DeltaSource, LowRank
from brainstacks.layers.projections import INPUT_GROUPS
from training.rounds.gating import PUBLISHED, Gating
from training.rounds.null_space import NullSpace


class ActiveStack(nn.Module, DeltaSource):
    """One round of MoE-LoRA deltas as float32 parameters; a `DeltaSource` for the hooks.

    Training adds `softplus(x W_n^T) * eps`, eps ~ N(0, 1), to the gate's logits (paper, eq. 3); in eval
    mode there is no noise. The balance loss is that of the paper's section 3.1, over each example of n_i
    tokens and not over whatever shares its batch, so that no split into batches changes it:

        L_aux = mean over deltas of  sum_i (n_i / sum_j n_j) * N * sum_e P_i(e) f_i(e)

    with P_i(e) the mean softmax probability of expert e and f_i(e) the share of dispatches that it gets
    (1.0 when balanced). P carries the gradient to the gate.

    Args:
        config: shape of the round.
        dims: projection -> (d_in, d_out).
        null_space: where the deltas must not write, or read; `export` folds it into the weights.
        noise: whether the gate is noisy in training.
        dropout: share of each input's entries that A does not see in training; what the others give it is
            scaled up for them. Projections that read the same input miss the same, and gates see all of it.
        gating: how its gates begin, and what they become.
    """

    def __init__(
        self,
        config: StackConfig,
        dims: Mapping[str, tuple[int, int]],
        null_space: NullSpace | None = None,
        *,
        noise: bool = True,
        dropout: float = 0.0,
        gating: Gating = PUBLISHED,
    ) -> None:
        super().__init__()
        self.config = config
        self.down = nn.ParameterDict()  # of each group: every A
        self.gates = nn.ParameterDict()  # of each group: every gate, then every gate's noise
        self.up = nn.ParameterDict()
        self._null_space = null_space
        self._dropout = dropout
        self._gating = gating
        self._progress = 0.0
        self._noisy = noise and config.experts > config.top_k  # who takes all experts chooses none
        for layer, group, names in self._groups():
            d_in = dims[names[0]][0]
            A_rows, *gate_rows = self._rows(len(names))
            # Kaiming-uniform with a = sqrt(5) is uniform in +-1/sqrt(d_in), for A, gates and noise alike.
            bound = 1 / math.sqrt(d_in)
            for parts, rows in ((self.down, A_rows), (self.gates, sum(gate_rows))):
                parts[f"{layer}_{group}"] = nn.Parameter(torch.empty(rows, d_in).uniform_(-bound, bound))
            with torch.no_grad():
                self.gates[f"{layer}_{group}"][: gate_rows[0]] *= gating.init
            for name in names:
                up = torch.zeros(config.experts * config.rank, dims[name][1])
                self.up[f"{layer}_{name}"] = nn.Parameter(up)
        self._responses: Tensor | None = None
        self._examples: Tensor | None = None
        self._tokens: Tensor | None = None
        self._balance: dict[tuple[int, int], Tensor] = {}

    def _groups(self) -> Iterator[tuple[int, int, list[str]]]:
        """(layer, group, its projections that carry a delta)."""
        for layer in range(self.config.layers):
            for group, projections in enumerate(INPUT_GROUPS):
                names = [p for p in projections if p in self.config.projections]
                if names:
                    yield layer, group, names

    def _rows(self, projections: int) -> tuple[int, int, int]:
        """Rows of a group: A, gates, noise."""
        gates = projections * self.config.experts
        return gates * self.config.rank, gates, gates if self._noisy else 0

    def on(self, responses: Tensor) -> ActiveStack:
        """See `DeltaSource.on`; it is so until it is told of another batch."""
        self._responses = responses if self.config.applies == "response" else None
        return self

    def at(self, progress: float) -> None:
        """How much of the round is behind: 0.0 at its first step, 1.0 after its last."""
        self._progress = progress

    def begin(self, segments: Tensor, responses: Tensor, examples: int) -> None:
        """Start a training forward.

        Args:
            segments: [B, T] int64, the example that each token belongs to, 0..E-1; -1 at padding.
            responses: [B, T] bool, where a token of a response is predicted.
            examples: E.
        """
        if self.config.applies == "response":  # only what acts is to be balanced
            segments = segments.where(responses, -1)
        numbers = torch.arange(examples, device=segments.device)
        members = (segments.flatten() == numbers[:, None]).float()
        self._tokens = members.sum(1)
        self._examples = members / self._tokens[:, None]
        self._balance = {}

    def balance_sum(self) -> Tensor:
        """sum_i n_i * L_aux(i) of the last training forward, a scalar: to be divided by the tokens of a step
        that the deltas act on."""
        if not self._balance:
            return torch.zeros((), device=next(self.parameters()).device)
        return torch.cat(list(self._balance.values())).mean()

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        """See `brainstacks.layers.hooks.DeltaSource`."""
        names = [p for p in INPUT_GROUPS[group] if p in self.config.projections]
        if not names:
            return {}
        config, shape = self.config, (1, len(names), self.config.experts)
        A_rows, gate_rows, noise_rows = self._rows(len(names))
        down, spread = self._products(layer, group, x).split([A_rows + gate_rows, noise_rows], dim=-1)
        top_k, noise = self._top_k(), None
        if self.training and self._noisy and top_k < config.experts:
            scale = self._gating.noise(self._progress) * F.softplus(spread.float())
            noise = (scale * torch.randn_like(scale)).unflatten(-1, shape)
        hidden, gates = gated_hidden(
            down,
            projections=len(names),
            experts=config.experts,
            rank=config.rank,
            top_k=top_k,
            weights=self._scaling(x),
            noise=noise,
        )
        if self.training and config.experts > top_k:
            logits = down[..., A_rows:].float().unflatten(-1, shape)
            balance = self._balance_of(logits if noise is None else logits + noise, gates)
            # Gradient checkpointing runs a layer twice: it is the first run's that the loss is made of.
            self._balance.setdefault((layer, group), balance)
        ups = [self._up(layer, name).to(x.dtype) for name in names]
        return {name: [LowRank(h, up)] for name, h, up in zip(names, hidden, ups, strict=True)}

    def _top_k(self) -> int:
        """Experts that a token uses now; what is measured is what is served."""
        softly = self.training and self._gating.takes_all(self._progress)
        return self.config.experts if softly else self.config.top_k

    def _products(self, layer: int, group: int, x: Tensor) -> Tensor:
        """What A, gates and noise make of x [.., d_in]: one GEMM, unless A sees less of it."""
        A, gates = self._down(layer, group), self.gates[f"{layer}_{group}"]
        if not (self.training and self._dropout):
            return F.linear(x, torch.cat([A, gates]).to(x.dtype))
        seen = F.dropout(x, self._dropout)
        return torch.cat([F.linear(seen, A.to(x.dtype)), F.linear(x, gates.to(x.dtype))], dim=-1)

    def _balance_of(self, logits: Tensor, gates: Tensor) -> Tensor:
        """sum_i n_i N sum_e P_i(e) f_i(e) of each projection, [P]; logits and gates [B, T, 1, P, N]."""
        if self._examples is None or self._tokens is None:
            raise RuntimeError("call begin(segments, examples) before a training forward")
        shape = logits.shape[-2:]
        probability = self._examples @ logits.softmax(-1).flatten(2).flatten(0, 1)
        share = self._examples @ (gates.detach() > 0).float().flatten(2).flatten(0, 1) / self.config.top_k
        per_example = (probability * share).unflatten(-1, shape).sum(-1)
        total: Tensor = self.config.experts * (self._tokens @ per_example)
        return total

    def _scaling(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        scaling = torch.full((1, 1, 1), self.config.scaling, dtype=dtype, device=x.device)
        return scaling if self._responses is None else scaling * self._responses[..., None, None, None]

    def _down(self, layer: int, group: int) -> Tensor:
        """Every A of a group, outside the null space; gates only select, and stay."""
        down: Tensor = self.down[f"{layer}_{group}"]
        return down if self._null_space is None else self._null_space.project_down(layer, group, down)

    def _up(self, layer: int, projection: str) -> Tensor:
        up: Tensor = self.up[f"{layer}_{projection}"]
        return up if self._null_space is None else self._null_space.project_up(layer, projection, up)

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """`layers.<layer>.<projection>.{A,B,gate}` float32, the null space folded in.

        The noise weights stay behind: they are for training only.
        """
        n, r = self.config.experts, self.config.rank
        tensors: dict[str, Tensor] = {}
        for layer, group, names in self._groups():
            a, gate = self._down(layer, group), self.gates[f"{layer}_{group}"]
            for i, name in enumerate(names):
                prefix = f"layers.{layer}.{name}"
                tensors[f"{prefix}.A"] = a[i * n * r : (i + 1) * n * r].clone()
                tensors[f"{prefix}.gate"] = gate[i * n : (i + 1) * n].clone()
                tensors[f"{prefix}.B"] = self._up(layer, name).T.contiguous()
        return tensors

    @torch.no_grad()
    def start_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights that `export` gave: continue a round instead of starting at zero deltas.

        Raises:
            ValueError: they are of another shape.
        """
        for layer, group, names in self._groups():
            for part, own in (("A", self.down), ("gate", self.gates)):
                given = torch.cat([tensors[f"layers.{layer}.{name}.{part}"] for name in names])
                if len(given) != self._rows(len(names))[part == "gate"]:
                    raise ValueError(f"layer {layer}: the tensors are of another shape than {self.config}")
                own[f"{layer}_{group}"][: len(given)] = given
            for name in names:
                self.up[f"{layer}_{name}"].copy_(tensors[f"layers.{layer}.{name}.B"].T)
