"""A bank's fused deltas equal the plain loops, for any mix of stacks, rows and weights."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainstacks.config import PROJECTIONS, StackConfig
from brainstacks.layers.bank import StackBank, StackTensors
from brainstacks.layers.projections import INPUT_GROUPS
from tests.tiny import plain_delta, random_stack

CPU = torch.device("cpu")
DIMS = {
    "q_proj": (6, 8),
    "k_proj": (6, 4),
    "v_proj": (6, 4),
    "o_proj": (8, 6),
    "gate_proj": (6, 10),
    "up_proj": (6, 10),
    "down_proj": (10, 6),
}

Stacks = Mapping[str, StackTensors]


def config(**changes: object) -> StackConfig:
    return StackConfig(**{"rank": 2, "alpha": 3.0, "experts": 3, "top_k": 2, "layers": 1, **changes})  # type: ignore[arg-type]


def bank_of(stacks: Stacks, dtype: torch.dtype = torch.float32) -> StackBank:
    bank = StackBank(CPU, dtype)
    for key, stack in stacks.items():
        bank = bank.plus(key, stack)
    return bank


def inputs(rows: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """[rows, 5, d_in] for each input group."""
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 5, DIMS[g[0]][0], generator=random).to(dtype) for g in INPUT_GROUPS]


def fused(
    bank: StackBank, weights: Sequence[Mapping[str, float]], x: list[torch.Tensor], packed: bool = False
) -> dict[str, torch.Tensor]:
    """projection -> the whole batch's delta of layer 0."""
    bound = bank.bind(weights, packed=packed)
    out = {}
    for group, names in enumerate(INPUT_GROUPS):
        pairs = bound.hidden(0, group, x[group])
        for name in names:
            out[name] = x[group].new_zeros(*x[group].shape[:-1], DIMS[name][1])
            for hidden, up in pairs.get(name, ()):
                out[name] = out[name] + (hidden if up is None else hidden @ up)
    return out


def plain(
    stacks: Stacks, weights: Sequence[Mapping[str, float]], x: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The same, row by row, stack by stack, round by round, expert by expert."""
    out = {}
    for group, names in enumerate(INPUT_GROUPS):
        for name in names:
            rows = []
            for i, row in enumerate(weights):
                total = torch.zeros(x[group].shape[1], DIMS[name][1], dtype=x[group].dtype)
                for key, weight in row.items():
                    if weight and name in stacks[key].config.projections:
                        total = total + weight * plain_delta(stacks[key], 0, name, x[group][i])
                rows.append(total)
            out[name] = torch.stack(rows)
    return out


def assert_same(
    left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], tolerance: float = 1e-5
) -> None:
    for name in PROJECTIONS:
        scale = max(1.0, float(right[name].abs().max()))
        assert float((left[name] - right[name]).abs().max()) <= tolerance * scale, name


@st.composite
def stacks_and_weights(draw: st.DrawFn) -> tuple[dict[str, StackTensors], list[dict[str, float]]]:
    stacks = {}
    for i in range(draw(st.integers(0, 8))):
        experts = draw(st.integers(1, 4))
        chosen = draw(st.sets(st.sampled_from(PROJECTIONS), min_size=1))
        shape = config(
            rank=draw(st.integers(1, 4)),
            experts=experts,
            top_k=draw(st.integers(1, experts)),
            alpha=draw(st.sampled_from([1.0, 4.0])),
            projections=tuple(p for p in PROJECTIONS if p in chosen),
        )
        # Half of them have one common shape, so that buckets with several stacks occur.
        shape = draw(st.sampled_from([shape, config()]))
        stacks[f"d{i}"] = random_stack(DIMS, seed=i, rounds=draw(st.integers(1, 3)), config=shape)
    weight = st.sampled_from([0.0, 0.0, 1.0, 0.3, -1.5])
    rows = [{key: draw(weight) for key in stacks} for _ in range(draw(st.integers(1, 4)))]
    return stacks, rows


@given(stacks_and_weights())
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_fused_equals_the_plain_loops_for_any_stacks_and_row_weights(
    case: tuple[dict[str, StackTensors], list[dict[str, float]]],
) -> None:
    stacks, weights = case
    x = inputs(len(weights))
    assert_same(fused(bank_of(stacks), weights, x), plain(stacks, weights, x))


@pytest.mark.parametrize(
    "popularity",
    [
        pytest.param([0, 0, 0, 0, 0, 0], id="identical"),
        pytest.param([0, 1, 2, 3, 4, 5], id="distinct"),
        pytest.param([0, 0, 0, 1, 1, 2], id="zipf"),
        pytest.param([0, 0, 0, 0, 0, 5], id="skewed"),
    ],
)
def test_fused_equals_plain_for_every_pattern_of_popularity(popularity: list[int]) -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, rounds=1 + i % 2, config=config()) for i in range(6)}
    weights = [{f"d{i}": 0.9} for i in popularity]
    x = inputs(len(weights))
    assert_same(fused(bank_of(stacks), weights, x), plain(stacks, weights, x))


def test_bfloat16_is_within_its_rounding_of_float32() -> None:
    # All experts kept: near a tie, rounding may choose another expert, which is no rounding error any more.
    stacks = {f"d{i}": random_stack(DIMS, i, rounds=2, config=config(top_k=3)) for i in range(3)}
    rounded = {
        key: StackTensors(s.config, s.rounds, {n: t.bfloat16().float() for n, t in s.tensors.items()})
        for key, s in stacks.items()
    }
    weights = [{"d0": 1.0, "d1": 0.5}, {"d2": -0.7}]
    x = inputs(2, dtype=torch.bfloat16)
    exact = plain(rounded, weights, [t.float() for t in x])
    found = {name: t.float() for name, t in fused(bank_of(stacks, torch.bfloat16), weights, x).items()}
    assert_same(found, exact, tolerance=0.03)


def test_zero_b_gives_an_exact_zero() -> None:
    stack = random_stack(DIMS, 0, rounds=2, config=config())
    silent = StackTensors(stack.config, 2, {n: t * (not n.endswith("B")) for n, t in stack.tensors.items()})
    for delta in fused(bank_of({"d": silent}), [{"d": 1.0}], inputs(1)).values():
        assert not delta.any()


def test_a_row_without_an_active_stack_gets_an_exact_zero_beside_rows_that_have_some() -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, config=config()) for i in range(3)}
    out = fused(bank_of(stacks), [{"d0": 1.0}, {}, {"d2": 0.5, "d1": 0.0}], inputs(3))
    for name, delta in out.items():
        assert not delta[1].any(), name
        assert delta[0].any(), name
        assert delta[2].any(), name


def test_every_row_of_a_mixed_batch_equals_its_solo_run() -> None:
    stacks = {
        f"d{i}": random_stack(DIMS, i, rounds=1 + i % 3, config=config(rank=1 + i % 2)) for i in range(5)
    }
    bank = bank_of(stacks)
    weights = [{"d0": 1.0}, {"d1": 0.4, "d4": -1.0}, {}, {f"d{i}": 0.2 * i for i in range(5)}]
    x = inputs(4)
    batch = fused(bank, weights, x)
    for i, row in enumerate(weights):
        solo = fused(bank, [row], [t[i : i + 1] for t in x])
        assert_same({name: t[i : i + 1] for name, t in batch.items()}, solo)


def test_packed_tokens_with_a_weight_each_equal_rows() -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, rounds=1 + i % 2, config=config()) for i in range(3)}
    bank = bank_of(stacks)
    weights = [{"d0": 1.0, "d2": 0.5}, {}, {"d1": -0.6}]
    x = inputs(3)
    rows = fused(bank, weights, x)
    packed = fused(
        bank, [row for row in weights for _ in range(5)], [t.reshape(1, 15, -1) for t in x], packed=True
    )
    assert_same({name: t.reshape(3, 5, -1) for name, t in packed.items()}, rows)


@pytest.mark.parametrize("order", list(itertools.permutations(["a", "b", "c"])))
@pytest.mark.parametrize("gone", ["a", "b", "c"])
def test_any_order_of_plus_and_minus_equals_a_fresh_bank(order: tuple[str, ...], gone: str) -> None:
    shapes = {"a": config(), "b": config(rank=1), "c": config()}
    stacks = {k: random_stack(DIMS, i, rounds=3 - i, config=shapes[k]) for i, k in enumerate(shapes)}
    bank = bank_of({k: stacks[k] for k in order}).minus(gone)
    left = {k: s for k, s in stacks.items() if k != gone}
    weights = [dict.fromkeys(left, 0.8)]
    x = inputs(1)
    assert_same(fused(bank, weights, x), fused(bank_of(left), weights, x))
    assert set(bank.keys) == set(left)
    assert bank.nbytes == bank_of(left).nbytes
    back = bank.plus(gone, stacks[gone])
    weights = [{"a": 1.0, "b": 0.5, "c": -0.5}]
    assert_same(fused(back, weights, x), plain(stacks, weights, x))


def test_a_bank_is_immutable_so_a_forward_keeps_the_one_it_started_with() -> None:
    stacks = {f"d{i}": random_stack(DIMS, i, config=config()) for i in range(2)}
    bank = bank_of(stacks)
    x = inputs(1)
    before = fused(bank, [{"d0": 1.0, "d1": 1.0}], x)
    bank.minus("d0").plus("d9", random_stack(DIMS, 9, config=config()))
    assert bank.keys == ("d0", "d1")
    for name, delta in fused(bank, [{"d0": 1.0, "d1": 1.0}], x).items():
        assert torch.equal(delta, before[name])


def test_an_empty_bank_binds_to_nothing() -> None:
    assert StackBank(CPU, torch.float32).bind([{}, {}]).buckets == ()
    assert StackBank(CPU, torch.float32).nbytes == 0


def test_a_weight_for_a_stack_that_is_not_resident_is_refused_unless_it_is_zero() -> None:
    bank = bank_of({"d0": random_stack(DIMS, 0, config=config())})
    assert bank.bind([{"other": 0.0}]).buckets == ()
    with pytest.raises(KeyError, match="other"):
        bank.bind([{"other": 0.5}])


def test_a_key_is_added_once_and_removed_once() -> None:
    stack = random_stack(DIMS, 0, config=config())
    bank = bank_of({"d0": stack})
    with pytest.raises(KeyError, match="resident already"):
        bank.plus("d0", stack)
    with pytest.raises(KeyError, match="not resident"):
        bank.minus("d1")
    assert bank.minus("d0").keys == ()
