"""Stacks on random weights: whether a base needs coherent hidden states to be stacked on (the paper's PSN).

    python -m benchmarks.experiments.psn --data DIR

The same curriculum is trained twice: on the base, and on one of its architecture whose weights are as they
are before any training. A loss of random weights falls easily at first, from that of guessing, so relative
gains alone say little: what decides is whether stacks bring random weights to where the base is without any.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments import designs
from benchmarks.experiments.laboratory import Laboratory
from benchmarks.experiments.materials import Materials
from benchmarks.experiments.measurements import (
    HOW_SURE,
    Measurements,
    Nats,
    Terms,
    answer_tokens,
    nats_of_base,
    nats_under,
    throughout,
)
from benchmarks.experiments.study import Findings, Study, command
from benchmarks.experiments.trainings import Training
from benchmarks.instruments.results import markdown_table
from brainstacks.base_files import locate
from brainstacks.checkpoint import plain_checkpoint
from brainstacks.durable import partial
from training.evaluation.intervals import Estimate
from training.recipe.settings import require

PRETRAINED, RANDOM = "pretrained", "random"
KINDS = (PRETRAINED, RANDOM)
SEED = 0
"""Of the random weights."""


def random_base(base: str, directory: Path) -> Path:
    """`directory`, with a base of the architecture and tokenizer of `base` and random weights; made once."""
    if directory.is_dir():
        return directory
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    origin = plain_checkpoint(locate(base)).directory
    config = AutoConfig.from_pretrained(origin)
    made = partial(directory)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(config, dtype=config.dtype or torch.float32)
    try:
        model.save_pretrained(made)
        AutoTokenizer.from_pretrained(origin).save_pretrained(made)
        made.rename(directory)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return directory


def _trainings(materials: Materials) -> list[Training]:
    """Of the base; those of random weights are the same, in another laboratory.

    Raises:
        ConfigError: random weights cannot be held as the base is.
    """
    settings = materials.settings
    require(
        settings.quantization != "native",
        "quantization is native, and random weights are in no file of their own bits; give none, nf4 or int8",
    )
    return [
        training
        for seed in settings.seeds
        for training in designs.curriculum(settings, seed, settings.earlier).values()
    ]


def _stack(kind: str, domain: str) -> str:
    return f"{kind}: stack of {domain}"


def _measure(lab: Laboratory, kind: str, seed: int) -> dict[str, Nats]:
    """Each stack alone in every domain, all together, and those up to a domain's own, as it was trained."""
    materials, settings = lab.materials, lab.settings
    stacks = designs.curriculum(settings, seed, settings.earlier)
    stacked = lab.stacked(stacks, settings.quantization)
    prefixes = {d: dict.fromkeys(settings.domains[: i + 1], 1.0) for i, d in enumerate(settings.domains)}
    found = {
        f"{kind}: as trained": nats_under(materials, stacked, prefixes),
        f"{kind}: ungated": nats_under(
            materials, stacked, throughout(settings.domains, dict.fromkeys(settings.domains, 1.0))
        ),
    }
    for domain in settings.domains:
        alone = throughout(settings.domains, {domain: 1.0})
        found[_stack(kind, domain)] = nats_under(materials, stacked, alone)
    return found


def _mean(terms: Sequence[tuple[str, str]], coefficient: float = 1.0) -> Terms:
    """The mean over (contestant, domain)."""
    return [(name, domain, coefficient / len(terms)) for name, domain in terms]


def _find(lab: Laboratory) -> Findings:
    domains = lab.settings.domains
    directory = lab.file("random", [lab.materials.identity.fingerprint, SEED], "base")
    elsewhere = lab.on(str(random_base(lab.settings.base, directory)))
    elsewhere.train_all(_trainings(elsewhere.materials))
    nats: dict[str, list[Nats]] = {}
    for kind, place in ((PRETRAINED, lab), (RANDOM, elsewhere)):
        nats[f"{kind}: base"] = [nats_of_base(place, domains)]
        for seed in lab.settings.seeds:
            for name, found in _measure(place, kind, seed).items():
                nats.setdefault(name, []).append(found)
    measured = Measurements(answer_tokens(lab.materials, domains), nats)
    figures = {kind: _figures(measured, kind, domains) for kind in KINDS}
    short = measured.difference(f"{RANDOM}: as trained", f"{PRETRAINED}: base")
    return Findings(
        _verdict(figures, short, lab.settings.steps),
        "\n\n".join((_table(figures), _losses(measured, domains), HOW_SURE + " " + _READING)),
        {
            "validation_nll": measured.to_dict(),
            "relative_gains": {k: {n: e.to_dict() for n, e in of.items()} for k, of in figures.items()},
            "random_with_stacks_less_pretrained_without": short.to_dict(),
            "confirmed": short.interval[0] > 0,
        },
    )


_READING = (
    "A relative gain is the loss that is taken away, as a share of that without stacks. What the stacks of "
    "other domains gain is no skill of the domain's own."
)

_SHARE = "others' share"

GAINS = ("as trained", "ungated", "own stack alone", "other stacks alone")


def _figures(measured: Measurements, kind: str, domains: Sequence[str]) -> dict[str, Estimate]:
    """Relative gains, by what is on; and what other stacks gain as a share of what the own gains."""
    base = _mean([(f"{kind}: base", d) for d in domains])
    own = [(_stack(kind, d), d) for d in domains]
    others = [(_stack(kind, j), i) for i, j in product(domains, domains) if i != j]
    on = (
        [(f"{kind}: as trained", d) for d in domains],
        [(f"{kind}: ungated", d) for d in domains],
        own,
        others,
    )
    gains = {name: [*base, *_mean(terms, -1.0)] for name, terms in zip(GAINS, on, strict=True)}
    found = {name: measured.ratio(gain, base) for name, gain in gains.items()}
    return {**found, _SHARE: measured.ratio(gains[GAINS[3]], gains[GAINS[2]])}


def _verdict(figures: dict[str, dict[str, Estimate]], short: Estimate, steps: int) -> str:
    confirmed = short.interval[0] > 0
    random, pretrained = figures[RANDOM], figures[PRETRAINED]
    return (
        f"Stacks take {_percent(random[GAINS[0]])} of the loss of random weights and "
        f"{_percent(pretrained[GAINS[0]])} of the base's, as trained; random weights with them lie {short} "
        f"nats above the base without any. Of what a domain's own stack gains, others' stacks gain "
        f"{_percent(random[_SHARE])} on random weights and {_percent(pretrained[_SHARE])} on the base. "
        f"As far as {steps} steps a stack can tell, coherent hidden states are "
        f"{'needed' if confirmed else 'not shown to be needed'}."
    )


def _table(figures: dict[str, dict[str, Estimate]]) -> str:
    names = [*GAINS, _SHARE]
    rows: list[list[Any]] = [[name, *(_percent(figures[kind][name]) for kind in KINDS)] for name in names]
    return markdown_table(["relative gain of", *KINDS], rows)


def _losses(measured: Measurements, domains: Sequence[str]) -> str:
    names = [f"{kind}: {what}" for kind in KINDS for what in ("base", "as trained", "ungated")]
    rows = [[name, *(f"{measured.estimate([(name, d, 1.0)]).value:.3f}" for d in domains)] for name in names]
    return markdown_table(["nats per token", *domains], rows)


def _percent(share: Estimate) -> str:
    low, high = share.interval
    return f"{share.value:.0%} [{low:.0%}, {high:.0%}]"


STUDY = Study(
    "psn",
    "Can stacks be stacked on random weights, or do they need a base with coherent hidden states?",
    _trainings,
    _find,
)
app = command(STUDY)

if __name__ == "__main__":
    app()
