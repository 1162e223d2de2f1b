"""A signature made of a domain's prompts knows others of its kind, and not those of another."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from brainstacks.base_model import BaseModel, load_base
from brainstacks.config import SignatureConfig
from brainstacks.routing.signature import Signature, Signatures, distances, seen_from
from tests.tiny import CHAT_TEMPLATE, byte_tokenizer, save_base
from training.data.encoding import Example
from training.rounds.signature import (
    DIRECTIONS,
    FOLDS,
    LEAST_PROMPTS,
    MOST_PROMPTS,
    ROUNDING,
    NoSignature,
    as_served,
    make_signature,
    prompt_vectors,
    signature_of,
)

WIDTH = 40


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prompts_of(seed: int, count: int, sample: int = 0) -> Tensor:
    """[count, 2, d] about a point of the domain's own, most varied in a few directions of its own."""
    varied = 0.5 * normal(count, 3, seed=seed + 1000 * sample + 1) @ normal(3, 2 * WIDTH, seed=seed + 2)
    noise = 0.3 * normal(count, 2 * WIDTH, seed=seed + 1000 * sample + 3)
    return torch.unflatten(2 * normal(2 * WIDTH, seed=seed) + varied + noise, 1, (2, WIDTH))


def made(prompts: Tensor) -> Signature:
    return signature_of(normal(16, 2, WIDTH, seed=99), prompts, "none")


def scores(signature: Signature, prompts: Tensor) -> Tensor:
    """Their standardised distances [n]."""
    offsets = seen_from(signature.centre, prompts) - signature.mean
    mu, sigma = signature.distances.tolist()
    return distances(offsets[:, None], signature.spread[None])[:, 0].sub(mu).div(sigma)


def test_prompts_of_its_kind_are_near_and_others_far() -> None:
    signature = made(prompts_of(10, 60))
    own = scores(signature, prompts_of(10, 200, sample=1))
    assert -1.2 < own.mean() < 0.6, "of a server that does not round"
    assert 0.4 < own.std() < 1.5
    assert scores(signature, prompts_of(20, 50)).min() > 5


def test_the_distance_is_that_of_a_probabilistic_pca() -> None:
    """Mahalanobis under V diag(v - n) V' + n I, times sqrt(n): spread takes what is left out of it."""
    prompts, neutral = prompts_of(10, 60), normal(16, 2, WIDTH, seed=99)
    signature = made(prompts)
    seen = seen_from(neutral.mean(dim=0), prompts).flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(seen.T))
    kept = values[-DIRECTIONS:]
    noise = values[:-DIRECTIONS].sum() / (2 * WIDTH - DIRECTIONS)
    V = vectors[:, -DIRECTIONS:]
    covariance = V @ torch.diag(kept - noise) @ V.T + noise * torch.eye(2 * WIDTH).double()
    y = seen_from(signature.centre, prompts_of(10, 5, sample=2)) - signature.mean
    rows = y.flatten(1).double()
    plain = [math.sqrt(float(noise * row @ torch.linalg.solve(covariance, row))) for row in rows]
    found = distances(y[:, None], signature.spread[None])[:, 0]
    torch.testing.assert_close(found, torch.tensor(plain), atol=1e-4, rtol=1e-4)


def test_distances_are_of_prompts_that_it_was_not_made_of() -> None:
    prompts = prompts_of(10, 20)
    signature = made(prompts)
    seen_again = scores(signature, prompts) * signature.distances[1] + signature.distances[0]
    assert signature.distances[0] > seen_again.mean()
    assert len(prompts) % FOLDS == 0


def test_prompts_that_are_all_but_alike_are_known_whether_a_server_rounds_or_not() -> None:
    mu, sigma = 0.3, 0.04
    served = as_served(mu, sigma).tolist()
    for distance in (mu, math.hypot(mu, ROUNDING)):
        assert abs(distance - served[0]) / served[1] < 0.5
    broad = as_served(1.0, 0.1).tolist()
    assert broad == pytest.approx([1.0, 0.1], abs=0.01), "where prompts differ it is nothing"


@pytest.mark.parametrize(
    ("prompts", "why"),
    [
        (prompts_of(10, LEAST_PROMPTS - 1), "7 different training prompts"),
        (prompts_of(10, 1).repeat(20, 1, 1), "are all alike"),
    ],
)
def test_too_few_prompts_or_all_alike_give_none(prompts: Tensor, why: str) -> None:
    with pytest.raises(NoSignature, match=why):
        made(prompts)


@pytest.mark.parametrize("which", [0, 1])
def test_a_base_without_numbers_gives_none(which: int) -> None:
    vectors = [normal(16, 2, WIDTH, seed=99), prompts_of(10, 20)]
    vectors[which][3, 1, 2] = torch.nan
    with pytest.raises(NoSignature, match="not finite"):
        signature_of(vectors[0], vectors[1], "none")


def test_a_prompt_is_not_measured_by_its_likes() -> None:
    """The turns of a conversation are all but one prompt, and neighbours."""
    prompts = prompts_of(10, 24)
    turns = prompts.repeat_interleave(4, dim=0) + 0.01 * normal(96, 2, WIDTH, seed=5)
    (once, _), (often, _) = (made(p).distances.tolist() for p in (prompts, turns))
    assert often == pytest.approx(once, rel=0.05)


def test_a_prompt_counts_once(tiny_base: BaseModel) -> None:
    examples = [Example(str(i), (97 + i, 98, 99 + i % 5), (1,)) for i in range(12)]
    once, often = make_signature(tiny_base, examples), make_signature(tiny_base, [*examples, *examples])
    assert once.config == often.config
    assert all(torch.equal(t, often.tensors()[name]) for name, t in once.tensors().items())
    with pytest.raises(NoSignature, match="7 different"):
        make_signature(tiny_base, examples[:7] * 2)
    with pytest.raises(NoSignature, match="5 different"):
        make_signature(tiny_base, [Example(e.id, e.prompt[::-1], (1,)) for e in examples], sequence_length=1)


def with_template(directory: Path, template: str) -> BaseModel:
    """The tiny base with another chat template."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(save_base(directory / "base", tokenizer=False))
    return load_base(directory / "base", quantization="none", device="cpu", dtype=torch.float32)


def test_a_long_preamble_leaves_no_neutral_prompt_out_and_a_template_that_refuses_all_gives_none(
    tmp_path: Path,
) -> None:
    examples = [Example(str(i), (97 + i, 98, 99 + i % 5), (1,)) for i in range(12)]
    long = make_signature(with_template(tmp_path / "long", "p" * 300 + CHAT_TEMPLATE), examples)
    assert long.centre.isfinite().all()
    with pytest.raises(NoSignature, match="chat template refuses"):
        make_signature(with_template(tmp_path / "refuses", "{{ raise_exception('no') }}"), examples)


def test_of_a_base_it_is_what_the_server_computes(tiny_base: BaseModel) -> None:
    examples = [Example(str(i), tuple(97 + (i * j) % 7 for j in range(4 + i % 5)), (1,)) for i in range(12)]
    signature = make_signature(tiny_base, examples)
    assert signature.config.width == tiny_base.identity.hidden_size
    assert signature.config.prompts == 12
    assert Signature.of(signature.config, signature.tensors()) == signature
    vectors = prompt_vectors(tiny_base, [e.prompt for e in examples])
    alone = torch.cat([prompt_vectors(tiny_base, [e.prompt]) for e in examples])
    torch.testing.assert_close(vectors, alone, atol=1e-4, rtol=1e-4)
    assert Signatures({"a": signature}, torch.device("cpu")).domains == ("a",)


def test_of_many_prompts_some_are_taken_from_everywhere(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.rounds import signature as module

    read: list[int] = []

    def counted(base: BaseModel, prompts: list[tuple[int, ...]], sequence_length: int) -> Tensor:
        read.append(len(prompts))
        return prompts_of(10, len(prompts))

    monkeypatch.setattr(module, "prompt_vectors", counted)
    examples = [Example(str(i), (i % 250, i // 250), (1,)) for i in range(MOST_PROMPTS + 10)]
    found = module.make_signature(tiny_base, examples)
    assert read[1] == (MOST_PROMPTS + 10) // 2
    assert found.config == SignatureConfig(WIDTH, DIRECTIONS, read[1], "none")
