"""The meta-router: per prompt, a sigmoid per domain (paper, section 5.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brainstacks.config import MetaRouterConfig


class MetaRouter(nn.Module):
    """Token features -> one logit per domain.

        t   = LayerNorm(W x)                               tokens in the router's own space, width h
        c_d = LayerNorm(softmax(t q_d over tokens) t)      one context per domain query q_d
        g   = LayerNorm(softmax(t q over tokens) t)        one global context
        logit_d = out(FF([c_d, g])) / clamp(exp(log_temperature), 0.3, 3)

    The attention's scores are not scaled by sqrt(h): that is the published network.

    Args:
        config: domains, widths and dropout.
    """

    def __init__(self, config: MetaRouterConfig) -> None:
        super().__init__()
        self.config = config
        h = config.hidden_dim
        self.token_proj = nn.Linear(config.token_dim, h)
        self.token_ln = nn.LayerNorm(h)
        self.domain_queries = nn.Parameter(torch.randn(len(config.domains), h) / h**0.5)
        self.global_query = nn.Parameter(torch.randn(h) / h**0.5)
        self.ctx_ln = nn.LayerNorm(h)
        self.global_ln = nn.LayerNorm(h)
        self.ff = nn.Sequential(
            nn.Linear(2 * h, h),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.LayerNorm(h),
            nn.Linear(h, h),
            nn.GELU(),
            nn.Dropout(config.dropout),
        )
        self.out = nn.Linear(h, 1)
        self.log_temperature = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Logits per domain; their sigmoid is the probability.

        Args:
            features: [B, T, d] float32.
            mask: [B, T] bool, true at real tokens; at least one per row.

        Returns:
            [B, D] float32.
        """
        tokens = self.token_ln(self.token_proj(features))
        queries = torch.cat([self.domain_queries, self.global_query[None]])
        scores = (tokens @ queries.T).masked_fill(~mask[..., None], float("-inf"))
        contexts = scores.softmax(dim=1).transpose(1, 2) @ tokens
        domains = self.ctx_ln(contexts[:, :-1])
        everywhere = self.global_ln(contexts[:, -1:]).expand_as(domains)
        logits: Tensor = self.out(self.ff(torch.cat([domains, everywhere], dim=-1))).squeeze(-1)
        temperature: Tensor = self.log_temperature.exp().clamp(0.3, 3.0)
        return logits / temperature
