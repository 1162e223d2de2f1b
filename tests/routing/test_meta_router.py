"""The meta-router's network equals its formula, and padding does not matter to it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from brainstacks.config import MetaRouterConfig
from brainstacks.routing.meta_router import MetaRouter
from brainstacks.stacks.router_artifact import router_shapes

CONFIG = MetaRouterConfig(domains=("chat", "code", "math"), token_dim=6, hidden_dim=8)


def network() -> MetaRouter:
    torch.manual_seed(0)
    return MetaRouter(CONFIG).eval()


def plain(net: MetaRouter, features: torch.Tensor) -> list[float]:
    """The formula for one prompt [T, d], domain by domain."""
    tokens = F.layer_norm(
        features @ net.token_proj.weight.T + net.token_proj.bias, (8,), net.token_ln.weight, net.token_ln.bias
    )

    def context(query: torch.Tensor) -> torch.Tensor:
        attention = torch.softmax(tokens @ query, dim=0)
        return sum((a * t for a, t in zip(attention, tokens, strict=True)), torch.zeros(8))

    everywhere = F.layer_norm(context(net.global_query), (8,), net.global_ln.weight, net.global_ln.bias)
    temperature = min(max(math.exp(float(net.log_temperature)), 0.3), 3.0)
    logits = []
    for query in net.domain_queries:
        own = F.layer_norm(context(query), (8,), net.ctx_ln.weight, net.ctx_ln.bias)
        logits.append(float(net.out(net.ff(torch.cat([own, everywhere])))) / temperature)
    return logits


@torch.no_grad()
def test_logits_equal_the_formula_and_ignore_padding() -> None:
    net = network()
    random = torch.Generator().manual_seed(1)
    rows = [torch.randn(length, 6, generator=random) for length in (1, 4, 7)]
    features = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1e4)
    mask = torch.tensor([[i < len(row) for i in range(7)] for row in rows])
    found = net(features, mask)
    assert found.shape == (3, 3)
    for logits, row in zip(found, rows, strict=True):
        torch.testing.assert_close(logits, torch.tensor(plain(net, row)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_temperature_is_clamped() -> None:
    net = network()
    features, mask = (
        torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(2)),
        torch.ones(1, 4, dtype=torch.bool),
    )
    found = []
    for log_temperature in (-50.0, math.log(0.3), math.log(3.0), 50.0):
        net.log_temperature.fill_(log_temperature)
        found.append(net(features, mask))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], found[3])
    assert not torch.allclose(found[1], found[2])


def test_every_parameter_learns_and_the_state_is_what_a_router_file_holds() -> None:
    net = network().train()
    mask = torch.ones(2, 5, dtype=torch.bool)
    net(torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(3)), mask).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert {n: tuple(t.shape) for n, t in net.state_dict().items()} == dict(router_shapes(CONFIG))


def test_dropout_is_off_outside_training() -> None:
    net = network()
    features, mask = (
        torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(4)),
        torch.ones(1, 4, dtype=torch.bool),
    )
    assert torch.equal(net(features, mask), net(features, mask))
    net.train()
    assert not torch.equal(net(features, mask), net(features, mask))
