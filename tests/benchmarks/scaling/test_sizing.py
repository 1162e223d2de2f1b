"""The page on scaling quotes what its formulas give, and the formulas give what was measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.instruments.decoders import LLAMA_3_8B, SMOLLM2_135M, decoder_config, projection_sizes
from benchmarks.instruments.results import RESULTS
from benchmarks.scaling.profile import DEMO, R16, load_profile

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
ROW_PARALLEL = ("o_proj", "down_proj")


def stack_bytes(decoder: str, experts: int, rank: int) -> int:
    """2 L (N r (sum of d_in + d_out) + N (sum of d_in)), of one round."""
    config = decoder_config(decoder)
    sizes = projection_sizes(config).values()
    numbers = experts * rank * sum(i + o for i, o in sizes) + experts * sum(i for i, _ in sizes)
    return int(2 * config.num_hidden_layers * numbers)


def token_bytes(decoder: str) -> int:
    config = decoder_config(decoder)
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2)


def test_a_stacks_bytes_by_the_formula_are_those_of_files() -> None:
    measured = json.loads((RESULTS / "hot_load-cpu-2-amx.json").read_text("utf-8"))["stack_bytes"]
    assert stack_bytes(SMOLLM2_135M, 4, 16) == pytest.approx(measured, rel=0.01)
    manifest = json.loads((ROOT / "stacks_registry" / "manifest.json").read_text("utf-8"))
    (demo, *_) = re.findall(r'"bytes": (\d+)', json.dumps(manifest))
    assert stack_bytes(SMOLLM2_135M, 1, 8) == pytest.approx(int(demo), rel=0.03)


def test_the_page_has_the_formulas_figures() -> None:
    for decoder, experts, rank in ((SMOLLM2_135M, 4, 16), (SMOLLM2_135M, 1, 8)):
        assert f"{stack_bytes(decoder, experts, rank) / 1e6:.1f} MB" in PAGE
    assert f"{stack_bytes(LLAMA_3_8B, 4, 16) / 1e6:.0f} MB" in PAGE
    for decoder in (SMOLLM2_135M, LLAMA_3_8B):
        assert f"| {token_bytes(decoder):,} |" in PAGE


def test_the_page_has_the_fitted_step() -> None:
    profile = load_profile(R16)
    step, row, stack, pair = (1000 * one for one in (profile.step, profile.row, profile.stack, profile.pair))
    assert f"ms = {step:.1f} + {row:.2f} rows + {stack:.2f} stacks" in PAGE
    assert f"+ {pair:.2f} stacks of each row" in PAGE
    assert f"missed by {100 * max(map(abs, profile.off)):.1f} % at most" in PAGE
    assert f"one takes {1000 * load_profile(DEMO).loads['host']:.1f} ms here" in PAGE


def test_the_page_has_the_figures_of_the_simulation() -> None:
    results = json.loads((RESULTS / "scaling-cpu-2-amx.json").read_text("utf-8"))
    for name, routers in results["most_load"].items():
        shown = ("random", "two choices", "sticky", "hashed", "affinity")
        cells = " | ".join(f"{routers[router]['value']:.2f}" for router in shown)
        assert f"| {name} | {cells} |" in PAGE
        assert routers["affinity"] == routers["affinity, no floor"], "the page says so"
    found = {(one["domains"], one["replicas"], one["router"]): one for one in results["cells"]}
    affine, two = found[50, 8, "affinity"], found[50, 8, "two choices"]
    low, high = affine["first_p95"]["interval"]
    assert f"{affine['first_p95']['value']:.2f} s (p95; {low:.2f}..{high:.2f}) with affinity" in PAGE
    assert f"{two['first_p95']['value']:.1f} s" in PAGE
    hits, other = (f"{100 * one['hit_rate']['value']:.0f} %" for one in (affine, two))
    assert f"{hits} of the stacks that a request names are there, against {other}" in PAGE
    assert f"serves {results['requests_a_second']['one_replica']:.1f} requests a second" in PAGE
    for one in results["compared"]:
        if one["figure"] == "tokens_per_second":
            assert f"{one['ratio']:.2f}" in PAGE


def test_the_page_has_the_share_of_a_stack_that_a_rank_would_hold() -> None:
    """A and gates of column-parallel projections are whole on every rank, all else is divided."""
    sizes = projection_sizes(decoder_config(LLAMA_3_8B))
    experts, rank = 4, 16
    down = {name: experts * (rank + 1) * d_in for name, (d_in, _) in sizes.items()}
    whole = sum(count for name, count in down.items() if name not in ROW_PARALLEL)
    share = whole / (sum(down.values()) + experts * rank * sum(d_out for _, d_out in sizes.values()))
    assert f"{share:.0%}".replace("%", " %") + " of a 4 x r16 stack" in PAGE
    held = [f"{100 * (share + (1 - share) / ranks):.0f} %" for ranks in (2, 4, 8)]
    assert f"{held[0]}, {held[1]} and {held[2]} of its bytes for P = 2, 4, 8" in PAGE
