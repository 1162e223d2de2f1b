"""The modelled step is the program that is run, with the bytes that its kernels really move."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from benchmarks.instruments import nf4_linears
from benchmarks.instruments.decode_model import BASE, OWN, SAME, Case, decode_step
from benchmarks.instruments.decoders import GEMMA_3_12B, LLAMA_3_8B, SMOLLM2_135M
from benchmarks.instruments.gpu_time import GPUS, H200, RTX_4090, Launch
from benchmarks.instruments.kernel_costs import SHARED
from benchmarks.instruments.results import RESULTS

pytestmark = pytest.mark.static_cuda


def launches(decoder: str, rows: int, mix: str, context: int = 64) -> list[Launch]:
    return decode_step(Case(decoder, rows, context, mix)).launches(H200)


def moved(found: list[Launch], *parts: str) -> float:
    return sum(one.nbytes for one in found if one.part in parts)


def test_a_composition_adds_eight_launches_a_layer_and_nothing_else() -> None:
    alone, composed = (Counter(one.part for one in launches(SMOLLM2_135M, 2, mix)) for mix in (BASE, SAME))
    assert composed - alone == Counter(down=4 * 30, up=4 * 30)
    assert not alone - composed


def test_attention_is_three_launches_a_layer_and_sampling_a_few_a_step() -> None:
    count = Counter(one.part for one in launches(SMOLLM2_135M, 2, BASE))
    assert count["attention"] == 3 * 30
    assert 0 < count["sampling"] <= 6


def test_one_token_reads_the_factors_of_the_experts_that_it_keeps() -> None:
    """Of four stacks top-2 of 4: half of A and B, and all gates."""
    found = launches(LLAMA_3_8B, 1, SAME)
    sizes = [
        (4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096),
    ]  # fmt: skip
    factors = sum(4 * 2 * (32 * (d_in + d_out) + 4 * d_in) for d_in, d_out in sizes) * 32
    assert factors <= moved(found, "down", "up") < 1.25 * factors, "the rest: hidden, activations, tables"


def test_more_rows_keep_more_experts_and_rows_of_their_own_use_more_stacks() -> None:
    one, same, own = (
        moved(launches(SMOLLM2_135M, rows, mix), "down", "up")
        for rows, mix in ((1, SAME), (8, SAME), (8, OWN))
    )
    assert 1.3 * one < same < 0.7 * own


def test_layers_with_a_window_read_no_more_keys_than_it_holds() -> None:
    short, long = (moved(launches(GEMMA_3_12B, 1, BASE, context), "attention") for context in (1024, 8192))
    key_and_value = 2 * 8 * 256 * 2
    more = 8 * (8192 - 1024) * key_and_value  # of 48 layers, every sixth has no window
    assert more <= long - short < 1.1 * more


@pytest.mark.parametrize(("rows", "kernels"), [(1, 1), (8, 4)])
def test_a_linear_is_one_launch_where_bitsandbytes_fuses_it_and_else_four(rows: int, kernels: int) -> None:
    found = nf4_linears.launches(rows, 4096, 4096, H200)
    assert len(found) == kernels
    assert nf4_linears.fused(rows, 4096, 4096, H200) is (kernels == 1)


def test_each_gpu_is_asked_for_its_own_choice() -> None:
    shape = 8, 4096, 4096
    assert nf4_linears.fused(*shape, RTX_4090)
    assert not nf4_linears.fused(*shape, H200)
    assert nf4_linears.fused(*shape, RTX_4090), "no answer is kept for another GPU"


def test_programs_are_as_large_as_the_committed_table_of_resources_says() -> None:
    (committed,) = RESULTS.glob("kernel_resources-*.json")
    table = json.loads(committed.read_text())["kernels"]
    for kernel, name in (
        ("delta_down", "down decode"),
        ("delta_up", "up decode"),
        ("attend", "attend, decode"),
    ):
        sizes = {
            one["shared"]
            for one in table
            if one["kernel"].startswith(name) and one["decoder"] in (LLAMA_3_8B, GEMMA_3_12B)
        }
        assert SHARED[kernel] == max(sizes)
        assert all(gpu.shared >= SHARED[kernel] for gpu in GPUS)
