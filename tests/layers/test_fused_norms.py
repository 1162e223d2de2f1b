"""Norms in one launch are the decoder's own; what is none of theirs is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from brainstacks.gpu_kernels.norm import rms_norm
from brainstacks.layers.fused_norms import fuse, reference
from tests.tiny import FAMILIES, plain_logits, tiny_model

pytestmark = pytest.mark.static_cuda

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("offset", "rounded"), [(0.0, True), (0.0, False), (1.0, False)])
@pytest.mark.parametrize("size", [8, 20, 576])
def test_the_kernel_computes_its_formula(dtype: torch.dtype, offset: float, rounded: bool, size: int) -> None:
    random = torch.Generator().manual_seed(size)
    x, weight = torch.randn(2, 3, size, generator=random), torch.randn(size, generator=random)
    x, weight = x.to(DEVICE, dtype), weight.to(DEVICE, dtype)
    found = rms_norm(x, weight, 1e-6, offset, rounded)
    # The interpreter cuts off where a GPU rounds, twice where the formula does.
    tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        found, reference(x, weight, 1e-6, offset, rounded), rtol=tolerance, atol=tolerance
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here, for CUDA tensors")
@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_a_decoder_with_fused_norms_is_the_same_decoder(family: str) -> None:
    model, fused = tiny_model(family), tiny_model(family)
    norms = sum("norm" in name.rpartition(".")[2] for name, _ in fused.named_modules())
    assert fuse(fused) == norms
    torch.testing.assert_close(
        plain_logits(fused, [5, 80, 33]), plain_logits(model, [5, 80, 33]), atol=1e-4, rtol=1e-4
    )


class OddRMSNorm(nn.Module):
    """One whose formula nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight * 2


def test_a_formula_that_the_kernel_has_not_is_left_to_the_module() -> None:
    odd = OddRMSNorm()
    assert fuse(nn.Sequential(odd, nn.LayerNorm(64), nn.Linear(64, 64))) == 0
    assert "forward" not in vars(odd)
