"""The round that is being trained: zero deltas at first, a noisy gate, and a balance loss that reaches it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainstacks.config import StackConfig
from brainstacks.layers.delta import gated_hidden
from brainstacks.layers.hooks import Correction, LowRank
from brainstacks.layers.projections import INPUT_GROUPS


class ActiveStack(nn.Module):
    """One round of MoE-LoRA deltas as float32 parameters; a `DeltaSource` for the hooks.

    Training adds `softplus(x W_n^T) * eps`, eps ~ N(0, 1), to the gate's logits (paper, eq. 3); in eval
    mode there is no noise. The balance loss is that of the paper's section 3.1,

        L_aux = mean over deltas of  N * sum_e P(e) f(e)

    with P(e) the mean softmax probability of expert e and f(e) the share of dispatches that it gets
    (1.0 when balanced). P carries the gradient to the gate.

    Args:
        config: shape of the round.
        dims: projection -> (d_in, d_out).
    """

    def __init__(self, config: StackConfig, dims: Mapping[str, tuple[int, int]]) -> None:
        super().__init__()
        self.config = config
        self.down = nn.ParameterDict()
        self.noise = nn.ParameterDict()
        self.up = nn.ParameterDict()
        for layer in range(config.layers):
            for group in range(len(INPUT_GROUPS)):
                names = self._names(group)
                if not names:
                    continue
                d_in = dims[names[0]][0]
                rows = len(names) * config.experts
                # Kaiming-uniform with a = sqrt(5) is uniform in +-1/sqrt(d_in), for A and for the gates.
                bound = 1 / math.sqrt(d_in)
                down = torch.empty(rows * (config.rank + 1), d_in).uniform_(-bound, bound)
                self.down[f"{layer}_{group}"] = nn.Parameter(down)
                self.noise[f"{layer}_{group}"] = nn.Parameter(torch.empty(rows, d_in).uniform_(-bound, bound))
                for name in names:
                    up = torch.zeros(config.experts * config.rank, dims[name][1])
                    self.up[f"{layer}_{name}"] = nn.Parameter(up)
        self._mask: Tensor | None = None
        self._balance: list[Tensor] = []

    def _names(self, group: int) -> list[str]:
        return [p for p in INPUT_GROUPS[group] if p in self.config.projections]

    def begin(self, mask: Tensor) -> None:
        """Start a forward. `mask` [B, T] is true where a token is no padding; only those are balanced."""
        self._mask = mask
        self._balance = []

    def balance_loss(self) -> Tensor:
        """L_aux of the last forward, a scalar."""
        return torch.cat(self._balance).mean()

    def corrections(self, layer: int, group: int, x: Tensor) -> Mapping[str, Sequence[Correction]]:
        """See `brainstacks.layers.hooks.DeltaSource`."""
        names = self._names(group)
        if not names:
            return {}
        config, key = self.config, f"{layer}_{group}"
        down = F.linear(x, self.down[key].to(x.dtype))
        noise = None
        shape = (1, len(names), config.experts)
        if self.training:
            scale = F.softplus(F.linear(x, self.noise[key].to(x.dtype)).float())
            noise = (scale * torch.randn_like(scale)).unflatten(-1, shape)
        hidden, gates = gated_hidden(
            down,
            projections=len(names),
            experts=config.experts,
            rank=config.rank,
            top_k=config.top_k,
            weights=torch.full((1, 1, 1), config.scaling, device=x.device),
            noise=noise,
        )
        if self.training:
            logits = down[..., -len(names) * config.experts :].float().unflatten(-1, shape)
            self._balance.append(self._balance_of(logits if noise is None else logits + noise, gates))
        ups = [self.up[f"{layer}_{name}"].to(x.dtype) for name in names]
        return {name: [LowRank(h, up)] for name, h, up in zip(names, hidden, ups, strict=True)}

    def _balance_of(self, logits: Tensor, gates: Tensor) -> Tensor:
        """N * sum_e P(e) f(e) of each projection, [P]; logits and gates [B, T, 1, P, N]."""
        if self._mask is None:
            raise RuntimeError("call begin(mask) before a training forward")
        mask = self._mask[..., None, None, None].to(logits.dtype)
        tokens = mask.sum()
        probability = (logits.softmax(-1) * mask).sum((0, 1)) / tokens
        share = ((gates > 0) * mask).sum((0, 1)) / (tokens * self.config.top_k)
        return (self.config.experts * (probability * share.detach()).sum(-1)).flatten()

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """`layers.<layer>.<projection>.{A,B,gate}` float32; the noise weights stay behind (training only)."""
        n, r = self.config.experts, self.config.rank
        tensors: dict[str, Tensor] = {}
        for layer in range(self.config.layers):
            for group in range(len(INPUT_GROUPS)):
                names = self._names(group)
                if not names:
                    continue
                a, gate = self.down[f"{layer}_{group}"].split([len(names) * n * r, len(names) * n])
                for i, name in enumerate(names):
                    prefix = f"layers.{layer}.{name}"
                    tensors[f"{prefix}.A"] = a[i * n * r : (i + 1) * n * r].clone()
                    tensors[f"{prefix}.gate"] = gate[i * n : (i + 1) * n].clone()
                    tensors[f"{prefix}.B"] = self.up[f"{layer}_{name}"].T.contiguous()
        return tensors
